"""Plans that would hang, be wrong or make no sense are refused at once; canaries tell when torch is mended."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_pool import (
    MODELS,
    VOCAB,
    Order,
    Outcome,
    even_stages,
    masked_loss,
    plain_pytorch,
    plan_of,
    train,
)
from torch import Tensor, nn

from mainspring.models.moe import MoeDecoder
from mainspring.spec import DecoderConfig, Mesh, MoeConfig, SpecError, Task
from mainspring.testing.gangs import Pool
from mainspring.train.parallel import share
from mainspring.train.parallel.read import Reading, read_model
from mainspring.train.parallel.share import share_of

TWICE = even_stages(4)


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (plan_of(Mesh(pp=2, fsdp=2), zero=3, schedule="zbv", stages=TWICE), "wrong gradients"),
        (plan_of(Mesh(pp=2, fsdp=2), zero=3, schedule="zero_bubble", stages=TWICE), "wrong gradients"),
        (plan_of(Mesh(pp=2, fsdp=2), zero=3, schedule="dualpipev", stages=TWICE), "wrong gradients"),
        (plan_of(Mesh(fsdp=2), zero=3, counts=(2, 6)), "wait for ever"),
        (plan_of(Mesh(pp=2, fsdp=2), zero=3, counts=(2, 6)), "wait for ever"),
        (plan_of(Mesh(ep=2), counts=(2, 6)), "exchange tokens in every micro-batch"),
        (plan_of(Mesh(pp=2), schedule="zbv", stages=TWICE, recompute="full"), "pay for twice"),
        (plan_of(Mesh(pp=2), schedule="1f1b", stages=TWICE), "one stage on each rank"),
        (plan_of(Mesh(pp=2), schedule="zbv", stages=(3, 3)), "two stages on each rank"),
        (plan_of(Mesh(pp=2), schedule="dualpipev", stages=TWICE, microbatch=4), "as many micro-batches"),
        (plan_of(Mesh(pp=4), microbatch=4), "fills 4 stages with as many micro-batches, a replica has 2"),
        (plan_of(Mesh(pp=2, dp=2), schedule="interleaved", stages=TWICE, counts=(5, 3)), "in 2 rounds"),
        (plan_of(Mesh(), stages=(3, 3)), "2 stages and no pipeline"),
        (plan_of(Mesh(tp=2), copies=2), "1 rows cannot be cut into 2 equal copies"),
        (plan_of(Mesh(fsdp=2, tp=2), zero=2, microbatch=2, copies=2), "beside dp and cp alone"),
        (plan_of(Mesh(cp=3, dp=1)), "no multiple of the cp3 ranks"),
        (plan_of(Mesh(tp=3), sequence_parallel=True), "no multiple of the tp3 ranks"),
        (plan_of(Mesh(dp=2), counts=(8, 0)), "at least one"),
        (plan_of(Mesh(dp=2), counts=(2, 2)), "make 4 rows, the global batch has 8"),
    ],
)
def test_a_plan_that_must_not_run_is_refused(plan: Any, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        share_of(plan, 0)


class Deaf(nn.Module):
    """A chain that takes no positions, and whose third block looks back at the first's input."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.score = nn.Linear(8, VOCAB)
        self.looks_back = False

    def forward(self, ids: Tensor) -> Tensor:
        x = first = self.words(ids)
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 2 and self.looks_back:
                x = x + first
        return self.score(x)


def laid_out(model: nn.Module, plan: Any) -> Reading:
    return read_model(model, masked_loss, plan)


def test_what_a_model_cannot_do_is_said_with_the_reason() -> None:
    looking = Deaf()
    looking.looks_back = True
    with pytest.raises(SpecError, match="but a tensor reaches round a cut to the loss"):
        laid_out(looking, plan_of(Mesh(pp=2)))
    with pytest.raises(SpecError, match="hold 5 blocks, the model has 6"):
        laid_out(MODELS["decoder"](VOCAB), plan_of(Mesh(pp=2), stages=(3, 2)))
    with pytest.raises(SpecError, match=r"layers\.0\.self_attn has 4 heads, which 8 ranks cannot share evenly"):
        laid_out(MODELS["decoder"](VOCAB), plan_of(Mesh(tp=8)))
    with pytest.raises(SpecError, match="divides nothing of this model"):
        laid_out(Deaf(), plan_of(Mesh(tp=2)))
    with pytest.raises(SpecError, match="tell Deaf the positions of its tokens, it takes none"):
        laid_out(Deaf(), plan_of(Mesh(cp=2)))
    with pytest.raises(SpecError, match="4 experts cannot be shared evenly by 8 ranks"):
        laid_out(MODELS["moe"](VOCAB), plan_of(Mesh(ep=8)))
    with pytest.raises(SpecError, match="the model has none"):
        laid_out(MODELS["decoder"](VOCAB), plan_of(Mesh(ep=2)))


def test_a_model_that_looks_at_values_cannot_be_cut() -> None:
    class Peeking(Deaf):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * (1 if ids.sum().item() > 0 else 2)

    with pytest.raises(SpecError, match="cannot be run without computing"):
        laid_out(Peeking(), plan_of(Mesh(pp=2)))


def test_a_module_that_is_used_again_and_again_cannot_be_cut() -> None:
    class Again(Deaf):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8)] * 4)

    with pytest.raises(SpecError, match=r"layers\.0 is one module that runs 4 times"):
        laid_out(Again(), plan_of(Mesh(pp=2)))


@pytest.mark.parametrize("fault", [{"experts": 0}, {"expert_ffn": 0}, {"experts_per_token": 5}])
def test_experts_of_no_size_are_refused(fault: dict[str, int]) -> None:
    sizes = {"experts": 4, "experts_per_token": 2, "expert_ffn": 8} | fault
    with pytest.raises(ValueError, match=r"at least 1|is above experts"):
        MoeConfig(decoder=DecoderConfig(vocab=8, hidden=8, layers=1, heads=1, kv_heads=1, ffn=8, context=8), **sizes)


def test_an_expert_that_no_token_chooses_learns_nothing_and_breaks_nothing() -> None:
    decoder = DecoderConfig(vocab=8, hidden=8, layers=1, heads=1, kv_heads=1, ffn=8, context=8)
    model = MoeDecoder(MoeConfig(decoder=decoder, experts=4, experts_per_token=1, expert_ffn=8))
    mixture = model.blocks[0].mlp
    mixture.bias[:] = torch.tensor([9.0, 0.0, 0.0, 0.0])
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert mixture.load.tolist() == [4, 0, 0, 0]
    assert mixture.experts.gate_proj.grad[0].any()
    assert not mixture.experts.gate_proj.grad[1:].any()


def train_unchecked(task: Task, order: Order) -> Outcome:
    """`train`, with the executor's own refusals out of the way."""
    kept, share.check_plan = share.check_plan, lambda plan: None
    try:
        return train(task, order)
    finally:
        share.check_plan = kept


@pytest.fixture
def impatient() -> Iterator[Pool]:
    pool = Pool(patience_s=12.0)
    yield pool
    pool.close()


@pytest.mark.parametrize("schedule", ["zero_bubble", "zbv"])
def test_canary_torch_still_computes_wrong_gradients_when_a_split_backward_meets_zero_3(
    impatient: Pool, schedule: str, tmp_path: Path
) -> None:
    """When this fails, torch is mended: the refusal in `share` and in `plan.limits` can go."""
    plan = plan_of(Mesh(pp=2, fsdp=2), zero=3, schedule=schedule, stages=TWICE)
    expected = plain_pytorch("decoder")
    try:
        found = impatient.run(4, train_unchecked, Order(plan, tmp_path))
    except (RuntimeError, EOFError, TimeoutError):
        return  # it may as well crash
    assert max(abs(a - b) for a, b in zip(found[0].losses, expected.losses, strict=True)) > 1e-4


def test_canary_uneven_micro_batches_still_cannot_gather_parameters_for_each(impatient: Pool, tmp_path: Path) -> None:
    """Ranks wait for each other, or find that they speak of different tensors."""
    plan = plan_of(Mesh(fsdp=2), zero=3, counts=(2, 6))
    with pytest.raises((TimeoutError, RuntimeError, EOFError)):
        impatient.run(2, train_unchecked, Order(plan, tmp_path))
