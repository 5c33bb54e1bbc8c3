"""Which blocks may be cut along the sequence: none that looks along it where no region gathers it."""

import re

import pytest
import torch
from torch import Tensor, nn

from mainspring.models.divide import regions
from mainspring.models.sequence import TOKENS, mixing
from mainspring.models.structure import ghost

WIDTH = 16


class Attention(nn.Module):
    """Divided under this name, unless it is told to stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.key, self.value, self.result = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        heads = (*x.shape[:2], self.heads, -1)
        q, k, v = (part(x).view(heads).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.result(mixed.transpose(1, 2).flatten(2))


class Widening(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, WIDTH))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.widen = nn.LayerNorm(WIDTH), Attention(), Widening()

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x + self.widen(self.between(x))


class Convolving(Block):
    """Each token sees the two before it."""

    def __init__(self) -> None:
        super().__init__()
        self.over_time = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)

    def between(self, x: Tensor) -> Tensor:
        return self.over_time(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)


class Shifting(Block):
    """A part of each token is that of the one before."""

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :8], nn.functional.pad(x[:, :-1, 8:], (0, 0, 1, 0))], -1)


class Normalising(Block):
    """Statistics of all tokens, while training."""

    def __init__(self) -> None:
        super().__init__()
        self.batch = nn.BatchNorm1d(WIDTH)

    def between(self, x: Tensor) -> Tensor:
        return self.batch(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Counting(Block):
    """A token's place is counted anew in each part."""

    def between(self, x: Tensor) -> Tensor:
        return x * torch.arange(1, 1 + x.shape[1], device=x.device)[:, None]


class SideBySide(Block):
    """Tokens of all rows in one dimension: a region would gather the wrong one."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x + self.widen(x.flatten(0, 1)).view_as(x)


class Fixed(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.new_zeros((64, WIDTH))


class Tower(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.words = nn.Embedding(48, WIDTH)
        self.tower = nn.ModuleList(block() for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.tower:
            x = block(x)
        return x


def refusals(block: type[nn.Module], *whole: str) -> dict[str, str]:
    with torch.device("meta"):
        model = ghost(Tower(block))
        row = torch.zeros((1, TOKENS), dtype=torch.int64)
        names = ["tower.0", "tower.1"]
        return mixing(model, lambda module: module(row), names, regions(model, whole=whole))


def test_a_block_whose_regions_alone_look_along_the_sequence_may_be_cut() -> None:
    assert refusals(Block) == {}
    assert refusals(Block, "Widening") == {}


@pytest.mark.parametrize(
    ("block", "whole", "reason"),
    [
        (Block, ("Attention",), "what widen is handed depends on other tokens"),
        (Block, ("Attention", "Widening"), "it looks along the sequence"),
        (Block, ("tower.0.mix",), "what widen is handed depends on other tokens"),
        (Convolving, (), "what widen is handed depends on other tokens"),
        (Shifting, (), "what widen is handed depends on other tokens"),
        (Normalising, (), "what widen is handed depends on other tokens"),
        (Counting, (), "what widen is handed depends on other tokens"),
        (SideBySide, (), "what widen is handed .* is not in rows"),
        (Fixed, (), "the model does not run on 14 tokens"),
        (Widening, (), "divides it as a whole"),
    ],
)
def test_a_block_that_looks_along_the_sequence_elsewhere_must_not_be_cut(
    block: type[nn.Module], whole: tuple[str, ...], reason: str
) -> None:
    found = refusals(block, *whole)
    assert found.keys() == ({"tower.0"} if "tower.0.mix" in whole else {"tower.0", "tower.1"})
    for said in found.values():
        assert re.search(reason, said)
