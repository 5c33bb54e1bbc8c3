"""What tensor parallelism may divide: no module whose parts would not add up to it, whatever its names say."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from mainspring.models.divide import regions, vocabulary

WIDTH, INNER, VOCAB = 16, 32, 48
SIZES = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 1, "intermediate_size": INNER}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0}


class Feed(nn.Module):
    """A feed-forward under the names of Llama's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER)
        self.down_proj = nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def inside(self, x: Tensor) -> Tensor:
        return F.silu(self.gate_proj(x)) * self.up_proj(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.inside(x))


class NormBefore(Feed):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.inside(self.norm(x)))


class NormAfter(Feed):
    """Its norm would find the same gradient on all ranks, which are added up."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Gated(Feed):
    """The input is read once more where each rank has the whole."""

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class Shared(Feed):
    """Each feature depends on all others."""

    def inside(self, x: Tensor) -> Tensor:
        return super().inside(x).softmax(-1)


class Tripled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 torch's name
        return 3.0 * super().forward(input)


class Scaled(Feed):
    def __init__(self) -> None:
        super().__init__()
        self.down_proj = Tripled(INNER, WIDTH)


class Decaying(nn.Module):
    """Cannot be divided, and gives zero when its buffer holds zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.register_buffer("decay", torch.zeros(64, WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x).softmax(-1)) * self.get_buffer("decay")[: x.shape[1]]


class Masked(nn.Module):
    """Attention that knows who may look at whom from a buffer."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.key, self.value, self.result = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("mask", mask(torch.ones(64, 64).triu(1)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = (*x.shape[:2], self.heads, -1)
        q, k, v = (part(x).view(heads).transpose(1, 2) for part in (self.query, self.key, self.value))
        scores, mask = q @ k.transpose(-1, -2), self.get_buffer("mask")[: x.shape[1], : x.shape[1]]
        scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return self.result((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("module", "divided"),
    [
        (Feed, True),
        (NormBefore, True),
        (NormAfter, False),
        (Gated, False),
        (Shared, False),
        (Scaled, False),
        (Decaying, False),
        (lambda: Masked(torch.Tensor.bool), True),
        (lambda: Masked(lambda mask: mask.masked_fill(mask > 0, -torch.inf)), True),
    ],
    ids=["feed-forward", "norm before", "norm after", "gated", "shared", "scaled", "decaying", "mask", "float mask"],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_module_is_divided_if_its_parts_compute_it_and_its_gradients(
    module: Callable[[], nn.Module], divided: bool, device: str
) -> None:
    """On meta, where the planner looks, and on a host, where training does, the answer is the same."""
    with torch.device(device):
        assert bool(regions(module())) == divided


def of(family: str, **changes: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, f"{family}Config")(**{**SIZES, **HEADS, **changes})
        return getattr(transformers, f"{family}ForCausalLM")(config)

    return make


def gpt2(family: str, head: str, **changes: object) -> Callable[[], nn.Module]:
    sizes = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 1, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return lambda: getattr(transformers, head)(getattr(transformers, f"{family}Config")(**sizes, **changes))


XGLM = {"d_model": WIDTH, "ffn_dim": INNER, "attention_heads": 4, "num_layers": 1}


@pytest.mark.parametrize(
    ("make", "divided"),
    [
        (gpt2("GPT2", "GPT2LMHeadModel"), {"attn", "mlp"}),
        (gpt2("GPTBigCode", "GPTBigCodeForCausalLM", multi_query=False), {"mlp"}),  # a head's three lie together
        (of("Llama"), {"self_attn", "mlp"}),
        (of("Qwen3", head_dim=4), {"self_attn", "mlp"}),  # norms of a head's width, as many as there are heads
        (of("Olmo2"), {"mlp"}),  # norms over all heads
        (of("Olmoe", num_experts=4), set()),
        (of("XGLM", **XGLM), set()),  # shapes its result by the whole width
    ],
    ids=["gpt2", "bigcode", "llama", "qwen3", "olmo2", "olmoe", "xglm"],
)
def test_of_known_families_what_cannot_be_divided_is_left_whole(
    make: Callable[[], nn.Module], divided: set[str]
) -> None:
    with torch.device("meta"):
        assert {region.name.rpartition(".")[2] for region in regions(make())} == divided


class Words(nn.Module):
    def __init__(self, table: nn.Embedding, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.embed, self.head = table, head or nn.Linear(WIDTH, VOCAB, bias=False)


class Louder(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 torch's name
        return 4.0 * super().forward(input)


@pytest.mark.parametrize(
    ("table", "divided"),
    [
        (lambda: nn.Embedding(VOCAB, WIDTH), True),
        (lambda: nn.Embedding(VOCAB, WIDTH, padding_idx=3), True),
        (lambda: Louder(VOCAB, WIDTH), False),
        (lambda: nn.Embedding(VOCAB, WIDTH, max_norm=1.0), False),
        (lambda: nn.Embedding(VOCAB, WIDTH, sparse=True), False),
        (lambda: nn.Embedding(VOCAB, WIDTH, scale_grad_by_freq=True), False),
    ],
    ids=["plain", "padding", "scaled", "renormalised", "sparse", "by frequency"],
)
def test_a_table_of_words_that_does_more_than_look_up_stays_whole(
    table: Callable[[], nn.Embedding], divided: bool
) -> None:
    assert (vocabulary(Words(table())) is not None) == divided


def test_a_head_that_does_more_than_multiply_keeps_the_words_whole() -> None:
    assert vocabulary(Words(nn.Embedding(VOCAB, WIDTH), Tripled(WIDTH, VOCAB, bias=False))) is None


def test_a_table_that_a_third_module_has_stays_whole() -> None:
    model = Words(nn.Embedding(VOCAB, WIDTH))
    model.head.weight = model.embed.weight
    assert vocabulary(model) is not None
    model.decoder = nn.Embedding(VOCAB, WIDTH)
    model.decoder.weight = model.embed.weight
    assert vocabulary(model) is None
