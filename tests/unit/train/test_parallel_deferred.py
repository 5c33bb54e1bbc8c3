"""A model whose construction was put off is, to the last bit, the one that is built at once."""

import pytest
import torch
from parallel_pool import MODELS, VOCAB, plan_of
from torch import nn

from mainspring.spec import Mesh
from mainspring.train.parallel import deferred
from mainspring.train.parallel.deferred import build


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "SMALL", 16)


def whole(make) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    model = make()
    return dict((*model.named_parameters(), *model.named_buffers()))


def put_off(make) -> dict[str, torch.Tensor]:
    """Every tensor as it is handed over, those that were not put off as they are."""
    built = build(make, plan_of(Mesh(tp=2)), seed=7)
    found = dict((*built.model.named_parameters(), *built.model.named_buffers()))
    assert any(tensor.is_meta for tensor in found.values())
    built.fill(lambda name, tensor: found.__setitem__(name, tensor.clone()))
    return found


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_built_alike(model: str) -> None:
    expected, found = whole(lambda: MODELS[model](VOCAB)), put_off(lambda: MODELS[model](VOCAB))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


class Loaded(nn.Module):
    """Starts from weights that somebody has, seeds in between, ties and freezes."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        torch.manual_seed(5)
        self.second = nn.Linear(64, 64)
        nn.init.trunc_normal_(self.first.weight, std=0.02)
        with torch.no_grad():
            self.second.weight.copy_(weights)
            self.second.weight[3].zero_()
        self.third = nn.Linear(64, 64)
        self.third.weight = self.first.weight
        self.third.bias.requires_grad_(requires_grad=False)
        self.register_buffer("mask", torch.ones(64, 64).tril())


def test_loaded_weights_seeds_views_and_ties_are_kept() -> None:
    weights = torch.randn(64, 64)
    expected, found = whole(lambda: Loaded(weights)), put_off(lambda: Loaded(weights))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_constructor_that_looks_at_values_is_run_at_once() -> None:
    class Peeking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)
            self.scale = float(self.layer.weight.abs().max())

    built = build(Peeking, plan_of(Mesh(tp=2)), seed=7)
    assert not built.model.layer.weight.is_meta
    torch.manual_seed(7)
    assert torch.equal(built.model.layer.weight, Peeking().layer.weight)


def test_a_tensor_without_a_name_is_not_put_off() -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)
            self.table = [torch.arange(4096.0)]

    assert not build(Hiding, plan_of(Mesh(tp=2)), seed=7).model.table[0].is_meta


def test_no_more_than_a_few_parameters_are_whole_at_once() -> None:
    """Sixteen matrices of 1 MiB are filled while at most three are alive."""
    made = build(
        lambda: nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(16))), plan_of(Mesh(tp=2)), seed=0
    )
    alive, most = [], 0

    def take(_: str, tensor: torch.Tensor) -> None:
        nonlocal most
        storage = tensor.untyped_storage()
        alive.append(torch.multiprocessing.reductions.StorageWeakRef(storage))
        del storage
        most = max(most, sum(not ref.expired() for ref in alive))

    made.fill(take)
    assert len(alive) == 16
    assert most <= 3
