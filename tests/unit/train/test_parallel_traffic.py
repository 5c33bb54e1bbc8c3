"""What the planner says a rank sends and holds is what it sends and holds, message by message and byte by byte."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parallel_pool import CONFIG, MODELS, SEQ_LEN, VOCAB, Order, masked_loss
from parallel_traffic import send_second_step
from test_parallel_parity import CASES

from mainspring.models.profile import profile_module
from mainspring.models.structure import set_cache
from mainspring.plan.collectives import Key, collectives, held_bytes, moving
from mainspring.spec import ModelSpec, Plan
from mainspring.testing.gangs import Pool
from mainspring.train.parallel.axes import Axes
from mainspring.train.parallel.loss import LossModule

# Beside what is predicted: which parameters replicas have used, and the other end of what is sent.
HARMLESS = {"used", "recv_"}


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


@pytest.mark.parametrize("case", CASES)
def test_predicted_messages_and_bytes_are_those_sent(pool: Pool, case: str, tmp_path: Path) -> None:
    plan, name = CASES[case]
    model = profile_of(name)
    found = pool.run(plan.mesh.world, send_second_step, Order(plan, tmp_path, model=name))
    for rank, sent in enumerate(found):
        counts = dict(sent.counts)
        expected = predicted(model, plan, rank, sent.moved)
        exchange = ("all_to_all", plan.mesh.ep)
        if exchange in expected:  # how many bytes is the tokens' choice; how many in all is not
            line = Axes(plan.mesh, rank, torch.device("cpu")).ranks("ep")
            total = sum(found[other].counts[exchange][1] for other in line)
            assert total == expected[exchange][1] * plan.mesh.ep
            counts[exchange] = (counts[exchange][0], expected[exchange][1])
        assert counts == expected, f"rank {rank}"
        assert sent.held_bytes == held_bytes(model, plan, rank), f"rank {rank}"
        assert sent.other.keys() <= HARMLESS
    if "moving" in case:
        assert any(sent.moved for sent in found), "this test is about experts that move"


def predicted(model: ModelSpec, plan: Plan, rank: int, moved: frozenset[str]) -> dict[Key, tuple[int, int]]:
    """Messages and bytes of a step at whose end the experts of layers `moved` change places."""
    blocks = {int(name.split(".")[2]) + 1 for name in moved}  # model.layers.0.mlp follows the embedding
    total: Counter[Key] = Counter()
    sizes: Counter[Key] = Counter()
    for part in (collectives(model, plan, rank), moving(model, plan, rank, blocks=blocks)):
        for key, amount in part.items():
            total[key] += amount.messages
            sizes[key] += amount.payload_bytes
    return {key: (total[key], sizes[key]) for key in total}
