"""A micro-batch in copies that take turns: while what one has computed travels, the other computes.

Tensor parallelism waits for a sum after every half of a layer. Cut in two along its rows, a micro-batch becomes two
passes that do not depend on each other, and one can compute while the other's sum is on its way (MindSpore calls it
multi-copy parallelism). Each copy runs the user's own forward and backward in a thread of its own, one at a time: a
copy gives its turn away when it has begun a collective, and gets it back when the next has begun one. So what runs
when, and in which order messages are sent, is the same on every rank and in every run.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from mainspring.train.parallel import seeds

_thread = threading.local()


class Turns:
    """Runs passes that take turns."""

    def __init__(self, works: Sequence[Callable[[], Tensor]], device: torch.device) -> None:
        self._works = works
        self._device = device
        self._turns = [threading.Semaphore(0) for _ in works]
        self._running = list(range(len(works)))
        self._found: dict[int, Tensor] = {}
        self._errors: list[BaseException] = []

    def run(self) -> list[Tensor]:
        """What each has returned; raises what the first to fail has raised."""
        watching = _get_current_dispatch_mode_stack()  # what watches this thread watches the passes too
        threads = [threading.Thread(target=self._run, args=(n, watching)) for n in self._running]
        for thread in threads:
            thread.start()
        self._turns[0].release()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        return [self._found[number] for number in range(len(self._works))]

    def give_way(self) -> None:
        """Let the next pass go on, until it is this one's turn again; its random draws are its own."""
        if len(self._running) > 1:
            mine: int = _thread.number
            state = seeds.generators(self._device)
            self._next(mine).release()
            self._turns[mine].acquire()
            seeds.restore(state)

    def _run(self, number: int, watching: Sequence[TorchDispatchMode]) -> None:
        _thread.turns, _thread.number = self, number
        self._turns[number].acquire()
        try:
            # Torch would run the backward of tensors on an accelerator in a thread that knows nothing of turns.
            with ExitStack() as stack, torch.autograd.set_multithreading_enabled(False):
                for mode in watching:
                    stack.enter_context(mode)
                self._found[number] = self._works[number]()
        except BaseException as error:  # noqa: BLE001 raised where the passes were started
            self._errors.append(error)
        following = self._next(number)
        self._running.remove(number)
        following.release()

    def _next(self, number: int) -> threading.Semaphore:
        place = (self._running.index(number) + 1) % len(self._running)
        return self._turns[self._running[place]]


def arrive(work: dist.Work | None) -> None:
    """Wait for a collective that has begun; whoever else has a turn goes on meanwhile."""
    turns: Turns | None = getattr(_thread, "turns", None)
    if turns is not None:
        turns.give_way()
    if work is not None:
        work.wait()
