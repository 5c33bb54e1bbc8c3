"""Gangs of rank processes over gloo on this machine: processes are started once and run many gangs, one after another.

Starting a process that has imported torch costs a second, five steps of a tiny model a tenth of that. What a rank runs
is a function of an importable module; it is called as `work(task, order)`.
"""

# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import faulthandler
import multiprocessing as mp
import shutil
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mainspring.spec import Task
from mainspring.train.parallel.group import Group

PATIENCE_S = 40.0
CONTEXT = mp.get_context("forkserver")
# The first optimizer.step imports torch._dynamo, which takes seconds: once instead of in every rank.
PRELOAD = ("mainspring.testing.gangs", "torch._dynamo", "torch.distributed.pipelining")


class FileGroup(Group):
    """Meets over a file, so that no gang can listen to another's port."""

    def _open_store(self) -> dist.Store:
        path = Path(self.task.run_dir) / "meeting"
        return dist.FileStore(str(path), self.task.world) if self.task.world > 1 else dist.HashStore()


class Pool:
    """Processes that each wait for a function to run as one rank of a gang."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._pipes: list[Any] = []
        self._processes: list[Any] = []

    def run(self, world: int, work: Callable[..., Any], order: Any) -> list[Any]:
        """What `work(task, order)` returned on each of `world` ranks. A rank's exception is raised here."""
        while len(self._pipes) < world:
            self._start()
        folder = Path(tempfile.mkdtemp(prefix="gang-"))
        try:
            for rank in range(world):
                self._pipes[rank].send((work, task_of(rank, world, folder), order))
            return self._receive(self._pipes[:world])
        except BaseException:
            self.close()  # the others may wait for a rank that is gone
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes = [], []

    def _start(self) -> None:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_serve, args=(theirs, self._patience_s), daemon=True)
        process.start()
        theirs.close()
        self._pipes.append(ours)
        self._processes.append(process)

    def _receive(self, pipes: list[Any]) -> list[Any]:
        """The ranks' answers; the first that has failed ends it, as the others will wait for it."""
        answers: dict[int, Any] = {}
        while len(answers) < len(pipes):
            ready: list[Any] = wait([p for rank, p in enumerate(pipes) if rank not in answers], self._patience_s)
            if not ready:
                raise TimeoutError(f"only ranks {sorted(answers)} have answered after {self._patience_s:.0f} s")
            for pipe in ready:
                found, error = pipe.recv()
                answers[pipes.index(pipe)] = found
                if error:
                    raise RuntimeError(f"rank {pipes.index(pipe)}: {error}")
        return [answers[rank] for rank in range(len(pipes))]


def task_of(rank: int, world: int, folder: Path) -> Task:
    """Rank number `rank` of a gang whose files are in `folder`."""
    return Task(
        job_id="gang", rank=rank, world=world, local_rank=rank, local_world=world, run_dir=str(folder), master=""
    )


def _serve(pipe: Any, patience_s: float) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            work, task, order = pipe.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(0.75 * patience_s)  # a gang that hangs says where
        try:
            pipe.send((work(task, order), ""))
        except BaseException:  # noqa: BLE001 the test that asked is told
            pipe.send((None, traceback.format_exc()))
            if dist.is_initialized():
                dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()
