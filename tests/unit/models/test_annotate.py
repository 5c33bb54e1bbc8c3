"""What a recipe says of parts of its model, read off again as patterns."""

import pytest
import torch
from torch import nn

import mainspring as ms
from mainspring.models.annotate import Marks, matching, read_marks
from mainspring.spec import SpecError


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        with ms.replicate():
            self.choose = nn.Linear(4, 2)


class Model(nn.Module):
    def __init__(self, degree: int = 0) -> None:
        super().__init__()
        with ms.split(degree):
            self.layers = nn.ModuleList(Pair() for _ in range(3))
        with ms.replicate():
            self.critic = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer.mix(x)
        return self.critic(x)


def test_the_innermost_word_holds_and_layers_have_one_pattern() -> None:
    assert read_marks(Model(2)) == Marks(replicate=("layers.*.choose", "critic"), split=("layers",), degree=2)


def test_a_pattern_that_would_mean_more_than_was_marked_is_not_used() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with ms.replicate():
        model.layers.append(nn.Linear(2, 2))
    assert read_marks(model).replicate == ("layers.2",)


def test_nothing_said_is_nothing_read_and_nothing_is_left_behind() -> None:
    Model()
    later = nn.Sequential(nn.Linear(2, 2))
    assert read_marks(later) == Marks()


def test_marks_change_no_number_and_no_name() -> None:
    torch.manual_seed(0)
    marked = Model(2)
    torch.manual_seed(0)
    plain = Model()
    assert marked.state_dict().keys() == plain.state_dict().keys()
    x = torch.ones(1, 4)
    assert torch.equal(marked(x), plain(x))


def test_two_degrees_in_one_model_are_refused() -> None:
    model = nn.Module()
    with ms.split(2):
        model.a = nn.Linear(2, 2)
    with ms.split(4):
        model.b = nn.Linear(2, 2)
    with pytest.raises(SpecError, match="split over 2 and over 4 ranks"):
        read_marks(model)
    with pytest.raises(SpecError, match="at least 1"), ms.split(-1):
        pass


def test_patterns_mean_paths_and_classes() -> None:
    assert matching(Model(), "layers.*.mix") == ["layers.0.mix", "layers.1.mix", "layers.2.mix"]
    assert matching(Model(), "Pair") == ["layers.0", "layers.1", "layers.2"]
    assert matching(Model(), "nowhere") == []
