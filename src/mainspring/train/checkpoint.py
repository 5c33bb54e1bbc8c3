"""Asynchronous sharded checkpoints that are never torn and never half there.

A save costs the training loop only the start of a copy: tensors are staged to host memory in the background, and
`wait_staged` must be called before anything changes them again, that is before the next `optimizer.step`. (A staging
that nobody waits for writes torn tensors: 232 of 300 in our measurement of the same library.) A writer thread then
stores the copies in the format of torch.distributed.checkpoint, so that any number of ranks can load them:

    step-00000100/   __0_0.distcp ...   one file per rank, synced to disk
                     .metadata          which part of which tensor is where
                     manifest.json      step, configuration, SHA-256 of every file
                     committed          SHA-256 of the manifest; written last

Where that is, and how it gets there whole, is `place`'s matter: a folder that every rank sees, or an object store. A
failed save never stops training: it is logged and kept in `errors`.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from mainspring.spec import SpecError, Unavailable
from mainspring.train.marks import MARKER, step_of
from mainspring.train.parallel.layout import Layout
from mainspring.train.parts import PartLoadPlanner, PartSavePlanner, parts_of
from mainspring.train.place import MANIFEST, open_place, reader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint: the step after which it was taken, its folder or URL, the `notes` it was saved with."""

    step: int
    where: str
    notes: Mapping[str, Any]

    def shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Name, global shape and type of every tensor in it."""
        entries = reader(self.where).read_metadata().state_dict_metadata
        return {
            name: (entry.size, entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }


class Checkpoints:
    """The checkpoints of one run in one folder or behind one URL; every rank sees it, the `keep` newest are kept."""

    def __init__(
        self, folder: str | Path, *, rank: int, world: int, keep: int, timeout: timedelta | None = None
    ) -> None:
        """A rank that waits for another gives up after `timeout`, by default gloo's own."""
        self._place = open_place(folder)
        self.errors: list[str] = []
        self.committed = 0  # the step of the last one on disk that this rank 0 has written
        self._rank = rank
        self._world = world
        self._keep = keep
        # Collectives of the writer thread must not interleave with those of the training loop.
        group = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(group, dist.ProcessGroup), "every rank is in it"
        self._group = group
        accelerated = torch.accelerator.is_available()
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=accelerated,
                use_shared_memory=False,
                use_async_staging=True,
                use_non_blocking_copy=accelerated,
            )
        )
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._staged: Future[Any] | None = None
        self._written: Future[None] | None = None
        if rank == 0:
            self._place.sweep()

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        notes: Mapping[str, Any],
        *,
        layouts: Mapping[str, Layout] = MappingProxyType({}),
    ) -> None:
        """Begin to save `tensors`, which must not change before `wait_staged`. Waits for an earlier save to end.

        `notes` are JSON, kept as they are now; `layouts` say where tensors lie in their whole.
        """
        self.wait()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # the copies run on a stream of their own
        staged = self._stager.stage(dict(tensors))
        assert isinstance(staged, Future), "asynchronous staging returns a future"
        self._staged = staged
        planner = PartSavePlanner(parts_of(tensors, layouts))
        self._written = self._writer.submit(self._write, step, staged, json.dumps(notes), planner)

    def wait_staged(self) -> None:
        """Return once the copies are made and the tensors may change."""
        if self._staged is not None:
            self._staged.exception()  # the writer reports it
            self._staged = None

    def wait(self) -> None:
        """Return once the last save is on disk, or has failed and been noted in `errors`."""
        self.wait_staged()
        if self._written is not None:
            self._written.result()
            self._written = None

    def close(self) -> None:
        """Finish what was begun and free the copies."""
        self.wait()
        self._writer.shutdown()
        self._stager.close()

    def newest(self) -> Saved | None:
        """The newest complete, undamaged checkpoint, agreed by all ranks; damaged ones are logged and passed over."""
        for name in self._agree(self._place.committed() if self._rank == 0 else None):
            damage = [problem for problem in self._gather(self._damage(name)) if problem]
            if not damage:
                manifest = json.loads(self._place.read(f"{name}/{MANIFEST}"))
                return Saved(step=step_of(name), where=self._place.where(name), notes=manifest["notes"])
            extra = {"step": step_of(name), "damage": damage[0]}
            log.warning("checkpoint damaged, falling back to an older one", extra=extra)
        return None

    def load(
        self, saved: Saved, tensors: Mapping[str, Tensor], *, layouts: Mapping[str, Layout] = MappingProxyType({})
    ) -> None:
        """Copy the saved values into `tensors`, however they are laid out now. Raises `SpecError` for a mismatch."""
        planner = PartLoadPlanner(parts_of(tensors, layouts))
        try:
            dcp.load(dict(tensors), storage_reader=reader(saved.where), planner=planner, process_group=self._group)
        except (CheckpointException, RuntimeError, ValueError) as error:
            raise SpecError(
                f"checkpoint {saved.where} does not fit this model: {error}",
                hint="the recipe's model changed since; train it under a new run",
            ) from error

    def _damage(self, name: str) -> str:
        """What is wrong with this rank's share of the files of `name`; empty when nothing is."""
        try:
            manifest = self._place.read(f"{name}/{MANIFEST}")
            if self._place.read(f"{name}/{MARKER}") != hashlib.sha256(manifest).hexdigest().encode():
                return f"{name}/{MANIFEST} is not the one that was committed"
            files: dict[str, str] = json.loads(manifest)["files"]
            for file in sorted(files)[self._rank :: self._world]:
                if self._place.digest(f"{name}/{file}") != files[file]:
                    return f"{name}/{file} does not have the digest in its manifest"
        except OSError as error:
            return f"{error.filename or name}: {error.strerror or error}"
        return ""

    def _write(self, step: int, staged: Future[Any], notes: str, planner: PartSavePlanner) -> None:
        name = made = ""
        try:
            name = self._agree(self._place.begin(step) if self._rank == 0 else None)
            writer, copies = self._ready(name, staged)
            dcp.save(copies, storage_writer=writer, planner=planner, process_group=self._group)
            files = self._digests(writer)
            if self._rank == 0:
                manifest = {"step": step, "world": self._world, "notes": json.loads(notes), "files": files}
                made = self._place.commit(name, json.dumps(manifest, indent=1))
                self.committed = step
        except (Exception, CheckpointException) as error:  # the library's own is a BaseException
            # Whatever it was, a failed save must not stop training. All ranks hear of a failure before they come here,
            # so none still writes what is discarded.
            reason = _innermost(error)
            log.exception("checkpoint not saved", extra={"step": step, "reason": reason})
            self.errors.append(f"step {step}: {reason}")
            if name:
                self._place.discard(name)
        else:
            if self._rank == 0:
                self._prune(made)

    def _ready(self, name: str, staged: Future[Any]) -> tuple[FileSystemWriter, dict[str, Any]]:
        """What to write with, and the copies. Where one rank has none no rank begins: the others would wait for it."""
        found, problem = None, ""
        try:
            found = self._place.writer(name), staged.result()
        except Exception as error:  # noqa: BLE001 of any kind: memory, a disk, a network; raised below on every rank
            problem = f"rank {self._rank} cannot copy its state: {type(error).__name__}: {error}"
        problems = [told for told in self._gather(problem) if told]
        if found is None or problems:
            raise Unavailable(problems[0])
        return found

    def _digests(self, writer: FileSystemWriter) -> dict[str, str]:
        """The digest of every rank's files. A rank that has none says why: the others wait for its word."""
        mine: dict[str, str] | str
        try:
            mine = self._place.digests(writer, self._rank)
        except (Unavailable, OSError) as error:
            mine = f"rank {self._rank} cannot read back what it wrote: {error}"
        parts = self._gather(mine)
        unread = [part for part in parts if isinstance(part, str)]
        if unread:
            raise Unavailable(unread[0])
        return {file: digest for part in parts for file, digest in part.items()}

    def _prune(self, newest: str) -> None:
        """Drop all but the last `keep`, and what `newest` replaces: damaged ones of its step."""
        try:
            names = self._place.committed()
            valid = [name for name in names if step_of(name) != step_of(newest) or name == newest]
            for name in set(names) - set(valid[: self._keep]):
                self._place.drop(name)
        except (Unavailable, OSError) as error:
            log.warning("old checkpoints not removed", extra={"error": str(error)})

    def _gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self._world
        dist.all_gather_object(found, value, group=self._group)
        return found

    def _agree(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank."""
        return self._gather(value)[0]


def _innermost(error: BaseException) -> str:
    """The first failure of the first rank that failed, without the library's wrapping."""
    if isinstance(error, CheckpointException) and error.failures:
        failure = next(iter(error.failures.values()))
        error = failure[0] if isinstance(failure, tuple) else failure
    return f"{type(error).__name__}: {error}"
