"""What a gang that is timed trains on: rows made from the number of a step, layers that only take time; a stopwatch."""

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mainspring.train.loop import StepResult


class Rows:
    """Rows of `length` + 1 words of `vocab`, `global_batch` a step, that depend on the step alone."""

    def __init__(self, *, vocab: int, global_batch: int, length: int) -> None:
        self.position = 0
        self._vocab, self._shape = vocab, (global_batch, length + 1)

    def batch(self, step: int, first: int, count: int) -> np.ndarray:
        """Rows `[first, first + count)` of a step as int64."""
        return np.random.default_rng(step).integers(0, self._vocab, self._shape, np.int64)[first : first + count]

    def state(self) -> Mapping[str, int | str]:
        """Where the next step begins."""
        return {"position": self.position}

    def load_state(self, state: Mapping[str, int | str]) -> None:
        """Go on from there."""
        self.position = int(state["position"])


class _Pause(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        if not x.is_meta:
            threading.Event().wait(seconds)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if not grads[0].is_meta:
            threading.Event().wait(2 * ctx.seconds)
        return grads[0], None


def pause_after(module: nn.Module, seconds: float) -> None:
    """Let `module` take so much longer forward, and twice that backward, without a processor's doing anything."""
    module.register_forward_hook(lambda _module, _args, output: _Pause.apply(output, seconds))


def timed(steps: Iterable[StepResult]) -> tuple[list[float], list[float]]:
    """The seconds of each step but the first, in which ranks meet and shapes are learned, and all losses."""
    seconds, losses, before = [], [], time.perf_counter()
    for step in steps:
        losses.append(step.loss)
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return seconds[1:], losses
