"""What the planner says a rank sends and holds is what it sends and holds, message by message and byte by byte."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parallel_pool import CONFIG, MODELS, SEQ_LEN, VOCAB, Order, masked_loss
from parallel_traffic import count_second_step
from test_parallel_parity import CASES

from mainspring.models.profile import profile_module
from mainspring.models.structure import set_cache
from mainspring.plan.collectives import collectives, held_bytes
from mainspring.spec import ModelSpec
from mainspring.testing.gangs import Pool
from mainspring.train.parallel.axes import Axes
from mainspring.train.parallel.loss import LossModule


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.close()


def profile_of(model: str) -> ModelSpec:
    with torch.device("meta"):
        module = LossModule(set_cache(MODELS[model](VOCAB), used=True), masked_loss)
        row = torch.zeros((1, CONFIG.seq_len + 1), dtype=torch.int64)
        return profile_module(module, (row,), name=model, seq_len=SEQ_LEN)


# Moving experts is no part of every step.
@pytest.mark.parametrize("case", [case for case in CASES if "moving" not in case])
def test_predicted_messages_and_bytes_are_those_sent(pool: Pool, case: str, tmp_path: Path) -> None:
    plan, name = CASES[case]
    model = profile_of(name)
    found = pool.run(plan.mesh.world, count_second_step, Order(plan, tmp_path, model=name))
    for rank, (counted, _, held) in enumerate(found):
        sent = dict(counted)
        expected = {
            key: (amount.messages, amount.payload_bytes) for key, amount in collectives(model, plan, rank).items()
        }
        exchange = ("all_to_all", plan.mesh.ep)
        if exchange in expected:  # how many bytes is the tokens' choice; how many in all is not
            line = Axes(plan.mesh, rank, torch.device("cpu")).ranks("ep")
            total = sum(found[other][0][exchange][1] for other in line)
            assert total == expected[exchange][1] * plan.mesh.ep
            sent[exchange] = (sent[exchange][0], expected[exchange][1])
        assert sent == expected, f"rank {rank}"
        assert held == held_bytes(model, plan, rank), f"rank {rank}"
