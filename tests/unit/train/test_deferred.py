"""A model is built without its weights, and each is made later as if it had been built at once, to the last bit."""

import copy
import logging
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
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
    return [name for name, parameter in model.named_parameters() if isinstance(parameter, FakeTensor)]


@pytest.mark.parametrize("make", [lambda: decoder(48), lambda: TiedModel(48), encoder, Everything])
def test_every_value_is_the_same_to_the_last_bit_and_so_is_the_next_draw(make):
    plain = seeded(make)
    after = torch.rand(2), random.random()
    found = seeded(lambda: deferred.build(make))
    assert torch.equal(torch.rand(2), after[0])
    assert random.random() == after[1]
    assert empty(found.model) == [name for name, _ in plain.named_parameters()]
    found.make(found.model)
    expected, made = plain.state_dict(), found.model.state_dict()
    assert expected.keys() == made.keys()
    for name, value in expected.items():
        assert (value.dtype, value.stride()) == (made[name].dtype, made[name].stride())
        assert torch.equal(value, made[name]), name
    trained = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    assert trained == {name: parameter.requires_grad for name, parameter in found.model.named_parameters()}


def test_what_is_no_parameter_and_what_is_shared_stays_so():
    plain, found = seeded(Everything), seeded(lambda: deferred.build(Everything))
    found.make(found.model)
    assert torch.equal(found.model.frequencies, plain.frequencies)
    assert torch.equal(found.model.own, plain.own)
    assert found.model.tied.weight is found.model.embed.weight
    assert isinstance(found.model.tied.weight, nn.Parameter)


def test_one_part_is_made_without_the_others():
    plain, found = seeded(encoder), seeded(lambda: deferred.build(encoder))
    found.make(found.model.layers[1])
    assert all(name.startswith("layers.0.") for name in empty(found.model))
    for name, value in plain.layers[1].state_dict().items():
        assert torch.equal(value, found.model.layers[1].state_dict()[name])


def test_what_cannot_be_deferred_is_made_at_once_with_the_same_values_and_the_log_says_why(caplog):
    plain = seeded(Keeper)
    with caplog.at_level(logging.WARNING):
        found = seeded(lambda: deferred.build(Keeper))
    assert "no parameter, buffer or attribute" in caplog.records[0].reason
    assert empty(found.model) == []
    assert torch.equal(found.model.inner.weight, plain.inner.weight)
    assert torch.equal(found.model.hidden[0], plain.hidden[0])


def test_a_function_that_is_wrong_raises_its_own_error():
    def wrong() -> nn.Module:
        raise ZeroDivisionError("heads")

    with pytest.raises(ZeroDivisionError, match="heads"):
        deferred.build(wrong)
