"""What one rank holds of a model that a plan has laid out: its stages, and their parameters by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from mainspring.train.parallel.layout import Layout


@dataclass(slots=True)
class Piece:
    """What this rank holds of the model: one stage of it, or all."""

    model: nn.Module
    root: nn.Module
    layouts: dict[str, Layout]
    partial: set[str]
    experts: set[str]


@dataclass(slots=True)
class State:
    """The parameters of this rank by name, how they are laid out, and on how many ranks each part is."""

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    experts: set[str] = field(default_factory=set)
    copies: dict[str, int] = field(default_factory=dict)


def join_pieces(pieces: Sequence[Piece]) -> tuple[State, list[tuple[nn.Parameter, nn.Parameter]]]:
    """The parameters of all stages, and those that a later stage has once more: the first and its mirror."""
    state, mirrors = State(), []
    for piece in pieces:
        for name, parameter in piece.model.named_parameters():
            if name not in state.parameters:
                state.parameters[name] = parameter
                state.layouts[name] = piece.layouts[name]
            elif state.parameters[name] is not parameter:
                mirrors.append((state.parameters[name], parameter))
        state.partial |= piece.partial
        state.experts |= piece.experts
    return state, mirrors
