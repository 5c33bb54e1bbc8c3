"""File contents, stored once under their SHA-256, on a local disk or behind any fsspec URL.

`put` streams into a temporary name while hashing and then renames, so a blob under its final name is whole; on a
local disk contents, name and folder entry are flushed before the caller commits the row that refers to it. On object
stores the rename is a copy on the server's side.
"""

import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from mainspring.spec import Failed, FileEntry, Unavailable
from mainspring.store.folder import open_filesystem
from mainspring.store.process import Owner, is_alive, is_gone, this_process

PIECE = 1 << 20
ABANDONED_S = 24 * 3600.0
"""An unfinished upload whose writer cannot be asked is left alone for this long."""


class Blobs(Protocol):
    """Where contents live. Digests are lower-case hex."""

    def put(self, source: Path) -> tuple[str, int, bool]:
        """Store a file's contents; return digest, size, and whether they were new here."""
        ...

    def has(self, digest: str, size_bytes: int) -> bool:
        """Whether contents of that size are stored under the digest."""
        ...

    def get(self, entry: FileEntry, target: Path) -> None:
        """Make `target` a read-only file with the contents, verified. Raises `Failed` when they are damaged."""
        ...

    def delete(self, digest: str) -> None:
        """Remove the contents; nothing happens when there are none."""
        ...

    def digests(self) -> Iterator[str]:
        """Every digest under which something is stored."""
        ...

    def unfinished(self) -> Iterator[str]:
        """Names of temporary files whose writer is gone."""
        ...

    def drop_unfinished(self, name: str) -> None:
        """Remove one of `unfinished()`."""
        ...


class LocalBlobs(Blobs):
    """Blobs in a folder: `blobs/ab/abcdef...`, read-only, hard-linked into fetched folders where that is possible."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._partial = root / "partial"

    def put(self, source: Path) -> tuple[str, int, bool]:
        """Copy into a partial file, flush, make it read-only, rename, flush the folders."""
        partial = self._partial / owned_name()
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as reader, partial.open("xb") as writer:
                digest, size = _copy(reader, writer)
                writer.flush()
                os.fsync(writer.fileno())
                os.fchmod(writer.fileno(), 0o444)
            final = self._path(digest)
            new = not self.has(digest, size)
            if new or self._digest(digest) != digest:  # damaged: this is how it is mended
                final.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(final)
                _sync_folder(final.parent)
                _sync_folder(self._blobs)
        except OSError as error:
            raise _unavailable(error, source) from error
        finally:
            partial.unlink(missing_ok=True)
        return digest, size, new

    def has(self, digest: str, size_bytes: int) -> bool:
        """By size alone: the digest was verified when the name was given."""
        try:
            return self._path(digest).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    def get(self, entry: FileEntry, target: Path) -> None:
        """Verify, then hard-link; copy where the file system cannot link that far."""
        blob = self._path(entry.digest)
        try:
            found = self._digest(entry.digest)
        except FileNotFoundError as error:
            raise _damaged(entry, "is missing") from error
        if found != entry.digest:
            raise _damaged(entry, f"has changed on disk ({found[:12]} instead of {entry.digest[:12]})")
        try:
            os.link(blob, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(blob, target)
            target.chmod(0o444)

    def delete(self, digest: str) -> None:
        """Unlink; folders linked to the contents keep them."""
        self._path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """List the two-letter folders."""
        yield from (path.name for path in sorted(self._blobs.glob("??/*")))

    def unfinished(self) -> Iterator[str]:
        """Partial files of writers that are gone."""
        for path in sorted(self._partial.glob("*")):
            with _vanishing():
                if _is_abandoned(path.name, modified_s=path.stat().st_mtime):
                    yield path.name

    def drop_unfinished(self, name: str) -> None:
        """Unlink the partial file."""
        (self._partial / name).unlink(missing_ok=True)

    def _digest(self, digest: str) -> str:
        """What the contents stored under `digest` really have."""
        with self._path(digest).open("rb") as reader:
            return hashlib.file_digest(reader, "sha256").hexdigest()

    def _path(self, digest: str) -> Path:
        return self._blobs / digest[:2] / digest


class RemoteBlobs(Blobs):
    """Blobs behind an fsspec URL such as `s3://bucket/folder` or `memory://blobs`."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = open_filesystem(url)

    def put(self, source: Path) -> tuple[str, int, bool]:
        """Upload under a partial name, then rename on the server."""
        partial = f"{self._root}/partial/{owned_name()}"
        try:
            self._fs.makedirs(f"{self._root}/partial", exist_ok=True)
            try:
                with source.open("rb") as reader, self._fs.open(partial, "wb") as writer:
                    digest, size = _copy(reader, writer)
                new = not self.has(digest, size)
                # Replaced even when it is there: that mends a damaged one, and the upload has been paid for.
                self._fs.makedirs(self._path(digest).rpartition("/")[0], exist_ok=True)
                self._fs.mv(partial, self._path(digest))
            finally:
                if self._fs.exists(partial):
                    self._fs.rm_file(partial)
        except OSError as error:
            raise _unavailable(error, source) from error
        return digest, size, new

    def has(self, digest: str, size_bytes: int) -> bool:
        """Ask for the size."""
        try:
            return self._fs.size(self._path(digest)) == size_bytes
        except FileNotFoundError:
            return False

    def get(self, entry: FileEntry, target: Path) -> None:
        """Download while hashing."""
        try:
            with self._fs.open(self._path(entry.digest), "rb") as reader, target.open("xb") as writer:
                found, _ = _copy(reader, writer)
        except FileNotFoundError as error:
            raise _damaged(entry, "is missing") from error
        if found != entry.digest:
            raise _damaged(entry, f"has changed ({found[:12]} instead of {entry.digest[:12]})")
        target.chmod(0o444)

    def delete(self, digest: str) -> None:
        """Remove the object if it is there."""
        if self._fs.exists(self._path(digest)):
            self._fs.rm_file(self._path(digest))

    def digests(self) -> Iterator[str]:
        """List every object under `blobs/`."""
        yield from (path.rpartition("/")[2] for path in sorted(self._fs.find(f"{self._root}/blobs")))

    def unfinished(self) -> Iterator[str]:
        """Partial uploads of writers that are gone."""
        for path in sorted(self._fs.find(f"{self._root}/partial")):
            with _vanishing():
                name = path.rpartition("/")[2]
                if _is_abandoned(name, modified_s=self._fs.modified(path).timestamp()):
                    yield name

    def drop_unfinished(self, name: str) -> None:
        """Remove the partial upload."""
        path = f"{self._root}/partial/{name}"
        if self._fs.exists(path):
            self._fs.rm_file(path)

    def _path(self, digest: str) -> str:
        return f"{self._root}/blobs/{digest[:2]}/{digest}"


def open_blobs(url: str, database_id: str) -> Blobs:
    """The blobs of one database under `url`; each database has its own folder there and cleans only that."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" in url:
        return RemoteBlobs(f"{url.rstrip('/')}/{database_id}")
    return LocalBlobs(Path(url).expanduser().absolute() / database_id)


def is_abandoned_folder(path: Path) -> bool:
    """Whether a folder named by `owned_name` lost the process that was using it."""
    return _is_abandoned(path.name, modified_s=path.stat().st_mtime)


def owned_name() -> str:
    """A fresh name that says which process made it."""
    me = this_process()
    return "~".join((me.host, me.boot, me.namespace.strip("pid:[]"), str(me.pid), me.born, secrets.token_hex(6)))


def _is_abandoned(name: str, *, modified_s: float) -> bool:
    parts = name.split("~")
    if len(parts) == 6 and parts[3].isdigit():
        host, boot, namespace, pid, born, _ = parts
        owner = Owner(host=host, boot=boot, namespace=f"pid:[{namespace}]", pid=int(pid), born=born)
        if is_gone(owner) or is_alive(owner):
            return is_gone(owner)
    return time.time() - modified_s > ABANDONED_S


def _copy(reader: IO[bytes], writer: IO[bytes]) -> tuple[str, int]:
    sha, size = hashlib.sha256(), 0
    while piece := reader.read(PIECE):
        writer.write(piece)
        sha.update(piece)
        size += len(piece)
    return sha.hexdigest(), size


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _vanishing() -> Iterator[None]:
    """Somebody else may finish or clean a file between listing it and looking at it."""
    try:
        yield
    except FileNotFoundError:
        return


def _unavailable(error: OSError, source: Path) -> Unavailable:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return Unavailable(
        f"cannot store {source.name}: {error.strerror or error}",
        hint="free some disk space, or point MAINSPRING_ARTIFACTS_URL elsewhere" if full else "",
    )


def _damaged(entry: FileEntry, what: str) -> Failed:
    return Failed(
        f"the stored content of {entry.path} {what}",
        hint="publish the same files again to restore it; `mainspring doctor` lists everything damaged",
    )
