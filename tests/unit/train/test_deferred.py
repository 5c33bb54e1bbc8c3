"""A model is built without its weights, and each is made later as if it had been built at once, to the last bit."""

import copy
import logging
import random
from collections.abc import Callable, Collection
from functools import partial

import numpy as np
import pytest
import torch
from parallel_pool import MODELS as PARALLEL
from parallel_pool import VOCAB
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from training_gang import TiedModel, decoder

from mainspring.train import deferred


class Everything(nn.Module):
    """Initialises its weights in every way that is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3, padding_idx=1)
        self.tied = nn.Linear(3, 5, bias=False)
        self.tied.weight = self.embed.weight
        self.turned, self.cut, self.norm, self.recurrent = (
            nn.Linear(7, 9),
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm1d(4),
            nn.LSTM(3, 4),
        )
        self.register_buffer("mask", torch.tril(torch.ones(5, 5)))
        self.register_buffer("table", torch.tensor([1.0, 2.0]) * 2)
        self.register_buffer("own", torch.randn(3, generator=torch.Generator().manual_seed(5)), persistent=False)
        self.frequencies = 10_000 ** -(torch.arange(0, 8, 2).float() / 8)
        self.gate = nn.Parameter(torch.randn(3, 4) * random.random() + torch.linspace(0, 1, 4))
        self.foreign = nn.Parameter(torch.zeros(3) + torch.from_numpy(np.random.rand(3)))
        self.narrow = nn.Parameter(torch.rand(4).half(), requires_grad=False)
        self.apply(self._start)
        nn.init.orthogonal_(self.turned.weight)
        nn.init.trunc_normal_(self.cut.weight, std=0.02)
        with torch.no_grad():
            self.turned.bias.uniform_(-1, 1)
            self.turned.bias[2:5] = torch.tensor([5.0, 6.0, 7.0])
            self.embed.weight[0] /= self.embed.weight[0].norm()
        self.copy = copy.deepcopy(self.turned)
        if self.gate.abs().sum() > 0:
            self.looked = nn.Linear(2, 2)

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


class Keeper(nn.Module):
    """Keeps a tensor where nobody finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.hidden = [torch.rand(3)]


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


def seeded(make: Callable[[], object]) -> object:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    return make()


def empty(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def made(found: deferred.Deferred, wanted: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    """The model's state, with the parameters that are wanted made."""
    state: dict[str, torch.Tensor] = dict(found.model.state_dict())
    names: dict[int, list[str]] = {}
    for name, parameter in found.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    first = {group[0]: group for group in names.values()}
    found.fill(lambda name, value: state.update(dict.fromkeys(first[name], value)), wanted)
    return state


class Loaded(nn.Module):
    """Starts from weights that somebody has, seeds in between, ties and freezes."""

    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(11))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        torch.manual_seed(5)
        self.second = nn.Linear(64, 64)
        nn.init.trunc_normal_(self.first.weight, std=0.02)
        with torch.no_grad():
            self.second.weight.copy_(self.weights)
            self.second.weight[3].zero_()
        self.third = nn.Linear(64, 64)
        self.third.weight = self.first.weight
        self.third.bias.requires_grad_(requires_grad=False)
        self.register_buffer("mask", torch.ones(64, 64).tril())


FAMILIES = [partial(make, VOCAB) for make in PARALLEL.values()]


@pytest.mark.parametrize("make", [lambda: decoder(48), lambda: TiedModel(48), encoder, Everything, Loaded, *FAMILIES])
def test_every_value_is_the_same_to_the_last_bit_and_so_is_the_next_draw(make):
    plain = seeded(make)
    after = torch.rand(2), random.random()
    found = seeded(lambda: deferred.build(make))
    assert torch.equal(torch.rand(2), after[0])
    assert random.random() == after[1]
    assert empty(found.model) == [name for name, _ in plain.named_parameters()]
    expected, state = plain.state_dict(), made(found)
    assert expected.keys() == state.keys()
    for name, value in expected.items():
        assert (value.dtype, value.stride()) == (state[name].dtype, state[name].stride())
        assert torch.equal(value, state[name]), name
    trained = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    assert trained == {name: parameter.requires_grad for name, parameter in found.model.named_parameters()}


def test_what_is_no_parameter_and_what_is_shared_stays_so():
    plain, found = seeded(Everything), seeded(lambda: deferred.build(Everything))
    assert torch.equal(found.model.frequencies, plain.frequencies)
    assert torch.equal(found.model.own, plain.own)
    assert found.model.tied.weight is found.model.embed.weight
    assert isinstance(found.model.tied.weight, nn.Parameter)


def test_one_part_is_made_without_the_others():
    plain, found = seeded(encoder), seeded(lambda: deferred.build(encoder))
    wanted = {name for name, _ in plain.named_parameters() if name.startswith("layers.1.")}
    state = made(found, wanted)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, state[name]) if name in wanted else state[name].is_meta


def test_no_more_than_one_large_parameter_is_whole_at_once():
    """Each is 1 MiB; a working copy of what is drawn may be there, too."""
    found = seeded(lambda: deferred.build(lambda: nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(16)))))
    alive: list[StorageWeakRef] = []
    most = 0

    def take(_: str, tensor: torch.Tensor) -> None:
        nonlocal most
        alive.append(StorageWeakRef(tensor.untyped_storage()))
        most = max(most, sum(not storage.expired() for storage in alive))

    found.fill(take)
    assert len(alive) == 16
    assert most <= 2


def test_what_cannot_be_deferred_is_made_at_once_with_the_same_values_and_the_log_says_why(caplog):
    plain = seeded(Keeper)
    with caplog.at_level(logging.WARNING):
        found = seeded(lambda: deferred.build(Keeper))
    assert "no parameter, buffer or attribute" in caplog.records[0].reason
    assert empty(found.model) == []
    assert torch.equal(found.model.inner.weight, plain.inner.weight)
    assert torch.equal(found.model.hidden[0], plain.hidden[0])


def test_a_generator_of_the_recipes_own_starts_anew_when_its_model_is_made_at_once():
    own = torch.Generator().manual_seed(7)

    def undeferrable() -> nn.Module:
        model = nn.Linear(4, 4)
        nn.init.normal_(model.weight, generator=own)
        torch.multinomial(torch.ones(4), 2)
        return model

    found = deferred.build(undeferrable).model
    after = own.get_state()
    own.manual_seed(7)
    assert torch.equal(found.weight, undeferrable().weight)
    assert torch.equal(own.get_state(), after)


def test_a_function_that_is_wrong_raises_its_own_error():
    def wrong() -> nn.Module:
        raise ZeroDivisionError("heads")

    with pytest.raises(ZeroDivisionError, match="heads"):
        deferred.build(wrong)
