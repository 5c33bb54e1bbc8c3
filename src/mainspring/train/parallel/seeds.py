"""Where random draws fall depends on what they are for, never on which rank makes them.

Every block of the model starts its generators anew for each micro-batch: from the run's seed, the step, the micro-batch
and the block's own number. So dropout is the same whether a block is the third of this rank or the first of the next
stage, and no two blocks drop alike. Ranks that have different parts of a sequence draw apart, and so do tensor-parallel
ranks inside what they divide, where each has other heads; what they all have whole, they drop alike.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mainspring.models.divide import Region
from mainspring.models.structure import outermost_entries
from mainspring.spec import Plan

State = list[tuple[Callable[[Tensor], Any], Tensor]]
_thread = threading.local()
MOST = 2**63 - 1


def start(seed: int) -> None:
    """Start every generator that a recipe may draw from without one of its own."""
    torch.manual_seed(seed)
    _start_others(seed)


def begin(*numbers: int) -> None:
    """From here on this thread computes what `numbers` say: a run's seed, its step, a micro-batch, perhaps a copy."""
    _thread.numbers = numbers
    start(_mixed(numbers))


def also(number: int) -> None:
    """One number more, for a part of what was begun; what was not begun has no numbers."""
    numbers: tuple[int, ...] | None = getattr(_thread, "numbers", None)
    if numbers is not None:
        begin(*numbers, number)


def attach(
    model: nn.Module, plan: Plan, at: Mapping[str, int], regions: Iterable[Region], device: torch.device
) -> None:
    """Have blocks start anew, and tensor-parallel ranks draw apart inside `regions`. `at` is this rank's place."""
    part = at["cp"] * plan.mesh.tp + at["tp"] if plan.sequence_parallel else at["cp"]
    # A stage has the blocks of others too, empty. A hook is not among what is recomputed: torch repeats that with the
    # generators as they were.
    for number, (_, block) in enumerate(outermost_entries(model)):
        block.register_forward_pre_hook(partial(_start_block, number=number, part=part, device=device))
    if plan.mesh.tp == 1 or plan.sequence_parallel:
        return
    modules = dict(model.named_modules())
    for number, region in enumerate(regions):
        for name, _ in region.columns:
            if layer := modules.get(f"{region.name}.{name}"):
                layer.register_forward_pre_hook(partial(_depart, number=number, rank=at["tp"], device=device))
        for name in region.rows:
            if layer := modules.get(f"{region.name}.{name}"):
                layer.register_forward_pre_hook(partial(_return, number=number))


def generators(device: torch.device) -> State:
    """The state of the generators that a model on `device` draws from, each with what sets it."""
    found: State = [(torch.set_rng_state, torch.get_rng_state())]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        found.append((module.set_rng_state, module.get_rng_state()))
    return found


def restore(state: State) -> None:
    """Have generators go on from `state`."""
    for put, value in state:
        put(value)


def _mixed(numbers: tuple[int, ...]) -> int:
    return hash(numbers) & MOST  # integers hash alike in every process


def _start_block(block: nn.Module, _: Any, *, number: int, part: int, device: torch.device) -> None:
    numbers: tuple[int, ...] | None = getattr(_thread, "numbers", None)
    if numbers is not None and block.training:
        seed = _mixed((*numbers, number, part))
        _start_torch(seed, device)
        _start_others(seed)


def _start_torch(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed` does, which takes a hundred times as long: it asks for every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _start_others(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)


def _depart(layer: nn.Module, _: Any, *, number: int, rank: int, device: torch.device) -> None:
    """What follows the first of a region's divided matrices is of this rank's columns: it is drawn for them alone."""
    kept = _kept()
    if layer.training and number not in kept:
        kept[number] = generators(device)
        # The generator's own seed is that of the block also when backward computes the region once more.
        _start_torch(_mixed((torch.initial_seed(), number, rank)), device)


def _return(layer: nn.Module, _: Any, *, number: int) -> None:
    """What the second matrix gives is added up over the ranks: they go on alike."""
    kept = _kept()
    if layer.training and number in kept:
        restore(kept.pop(number))


def _kept() -> dict[int, State]:
    return vars(_thread).setdefault("kept", {})
