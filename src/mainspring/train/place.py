"""Where checkpoints lie: in a folder when every rank sees it, else behind an fsspec URL.

Both keep the same promise, each in the way its medium allows. A folder: write under a hidden name, sync, rename, mark.
An object store has no rename: write under a name that was never used before, so that nothing a dead attempt still
uploads can mix in, and mark. In both the mark is the last thing written, and the first removed.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader, FsspecWriter
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from mainspring.spec import Unavailable
from mainspring.store.folder import RemoteFolder
from mainspring.train.marks import MARKER, PREFIX, committed

MANIFEST = "manifest.json"
METADATA = ".metadata"


class Place(Protocol):
    """The checkpoints of one run. A checkpoint is known by the name of its folder, its files by `name/file`."""

    def begin(self, step: int) -> str:
        """The name to write the files of a new checkpoint under. Only rank 0 asks."""
        ...

    def writer(self, name: str) -> FileSystemWriter:
        """What every rank writes its tensors with."""
        ...

    def digests(self, writer: FileSystemWriter, rank: int) -> dict[str, str]:
        """SHA-256 of each file that this rank has written with `writer`."""
        ...

    def commit(self, name: str, manifest: str) -> str:
        """Make what was written a checkpoint: add `manifest`, then the mark; its name from now on. Only rank 0 does."""
        ...

    def committed(self) -> list[str]:
        """The names of all complete checkpoints, newest first; see `marks`."""
        ...

    def where(self, name: str) -> str:
        """The folder or URL of a checkpoint, for `reader`."""
        ...

    def read(self, path: str) -> bytes:
        """A file; an `OSError` when it is damaged or missing, `Unavailable` when that cannot be said."""
        ...

    def digest(self, path: str) -> str:
        """SHA-256 of a file as it is now; raises as `read` does."""
        ...

    def drop(self, name: str) -> None:
        """Remove a checkpoint, its mark first: half a deletion is no checkpoint."""
        ...

    def discard(self, name: str) -> None:
        """Remove what a failed save wrote, as far as that can be done."""
        ...

    def sweep(self) -> None:
        """Remove what saves that were killed have left."""
        ...


def open_place(where: str | Path) -> Place:
    """The place at a folder or an fsspec URL."""
    return RemotePlace(str(where)) if "://" in str(where) else LocalPlace(Path(where))


def reader(where: str) -> FileSystemReader:
    """Reads the checkpoint at the folder or URL `where`."""
    return FsspecReader(where) if "://" in where else FileSystemReader(where)


class LocalPlace(Place):
    """Checkpoints `step-00000100` in a folder that all ranks see; `.step-00000100` while being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, step: int) -> str:
        """A hidden name."""
        return f".{PREFIX}{step:08d}"

    def writer(self, name: str) -> FileSystemWriter:
        """Files synced to disk."""
        return FileSystemWriter(self._folder / name, sync_files=True)

    def digests(self, writer: FileSystemWriter, rank: int) -> dict[str, str]:
        """Read back from the file system."""
        folder = Path(writer.path)
        mine = [*folder.glob(f"__{rank}_*.distcp"), *([folder / METADATA] if rank == 0 else [])]
        return {path.name: _digest(path) for path in mine}

    def commit(self, name: str, manifest: str) -> str:
        """Rename, then write the mark; both are synced."""
        partial, final = self._folder / name, self._folder / name.removeprefix(".")
        _write_synced(partial / MANIFEST, manifest)
        shutil.rmtree(final, ignore_errors=True)  # uncommitted or damaged, or it would have been resumed from
        partial.rename(final)
        _write_synced(final / f".{MARKER}", _digest(final / MANIFEST))
        (final / f".{MARKER}").rename(final / MARKER)
        _sync_folder(final)
        _sync_folder(self._folder)
        return final.name

    def committed(self) -> list[str]:
        """Folders with a mark."""
        return committed(self._folder)

    def where(self, name: str) -> str:
        """The folder."""
        return str(self._folder / name)

    def read(self, path: str) -> bytes:
        """From disk."""
        return (self._folder / path).read_bytes()

    def digest(self, path: str) -> str:
        """From disk."""
        return _digest(self._folder / path)

    def drop(self, name: str) -> None:
        """Unlink the mark, then the rest."""
        (self._folder / name / MARKER).unlink()
        shutil.rmtree(self._folder / name)

    def discard(self, name: str) -> None:
        """Remove the hidden folder."""
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def sweep(self) -> None:
        """Hidden folders, and one that was renamed but not marked."""
        unmarked = (found for found in self._folder.glob(f"{PREFIX}*") if not (found / MARKER).exists())
        for leftover in [*self._folder.glob(f".{PREFIX}*"), *unmarked]:
            shutil.rmtree(leftover, ignore_errors=True)


class RemotePlace(RemoteFolder, Place):
    """Checkpoints `step-00000100-1f3a5c7e` behind an fsspec URL."""

    def begin(self, step: int) -> str:
        """A name that was never used before."""
        return f"{PREFIX}{step:08d}-{secrets.token_hex(4)}"

    def writer(self, name: str) -> FileSystemWriter:
        """Streams to the store while hashing."""
        writer = FsspecWriter(self.where(name), sync_files=False)
        writer.fs = _HashingFileSystem(writer.fs)
        return writer

    def digests(self, writer: FileSystemWriter, rank: int) -> dict[str, str]:  # noqa: ARG002 each writer has its own
        """As they were written: reading them back would double the traffic, and is done before they are used."""
        assert isinstance(writer.fs, _HashingFileSystem)
        return {name.removesuffix(".tmp"): digest for name, digest in writer.fs.digests.items()}

    def commit(self, name: str, manifest: str) -> str:
        """Write the manifest, then the mark."""
        self.write(f"{name}/{MANIFEST}", manifest.encode())
        self.write(f"{name}/{MARKER}", hashlib.sha256(manifest.encode()).hexdigest().encode())
        return name

    def committed(self) -> list[str]:
        """Folders with a mark."""
        return committed(self.url)

    def where(self, name: str) -> str:
        """The URL."""
        return f"{self.url}/{name}"

    def drop(self, name: str) -> None:
        """The mark, then the rest."""
        self.remove(f"{name}/{MARKER}")
        self.remove(name)

    def discard(self, name: str) -> None:
        """When even that fails the next attempt sweeps it away."""
        try:
            self.drop(name)
        except (Unavailable, OSError):
            return

    def sweep(self) -> None:
        """Whatever has no mark."""
        marked = set(self.committed())
        for name in {path.partition("/")[0] for path in self.files()} - marked:
            self.remove(name)


class _HashingFileSystem(FileSystem):
    """The library's own, which remembers the SHA-256 of every file written through it, by name."""

    def __init__(self, like: FileSystem) -> None:
        super().__init__()
        self.fs = like.fs
        self.digests: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[Any]:
        """A stream that hashes what is written."""
        with super().create_stream(path, mode) as stream:
            if "r" in mode:
                yield stream
                return
            hashing = _HashingWriter(stream)
            yield hashing
        self.digests[os.fspath(path).rpartition("/")[2]] = hashing.sha.hexdigest()


class _HashingWriter(io.RawIOBase):
    """Appends to `stream`."""

    def __init__(self, stream: Any) -> None:
        self.sha = hashlib.sha256()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha.update(data)
        self._stream.write(data)
        return len(memoryview(data).cast("B"))

    def tell(self) -> int:
        return self._stream.tell()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
