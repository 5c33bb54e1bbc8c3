"""A folder behind an fsspec URL, for what processes on several machines must reach and is no artifact.

Object stores know no rename and no half-written object: a file is there, whole, once its write has returned. What is
made of several files is therefore complete when the last of them, the one its readers look for, is there. The word of
their clients for "missing" is FileNotFoundError; whatever else they raise becomes `Unavailable`, since nothing can be
said about the files then.
"""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from mainspring.spec import SpecError, Unavailable


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of `url` and the path in it; `SpecError` when there is none or its driver is missing.

    Without listings cached: other processes write there too.
    """
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        scheme = url.partition("://")[0]
        raise SpecError(f"cannot use {scheme}:// for artifacts: {error}", hint="a folder or an fsspec URL") from error
    return filesystem, root.rstrip("/")


class RemoteFolder:
    """Files by relative path below `url`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = open_filesystem(self.url)

    def read(self, path: str) -> bytes:
        """The contents of a file; `FileNotFoundError` when there is none."""
        with self._translated("read", path):
            return self._fs.cat_file(self._path(path))

    def write(self, path: str, data: bytes) -> None:
        """Put a small file there, replacing one of that name."""
        with self._translated("write", path):
            self._fs.makedirs(self._path(path).rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(self._path(path), data)

    def digest(self, path: str) -> str:
        """SHA-256 of a file as it is there now; `FileNotFoundError` when there is none."""
        with self._translated("read", path), self._fs.open(self._path(path), "rb") as stream:
            sha = hashlib.sha256()
            while piece := stream.read(1 << 20):
                sha.update(piece)
            return sha.hexdigest()

    def files(self) -> tuple[str, ...]:
        """Every file below, by relative path."""
        with self._translated("list", ""):
            found = self._fs.find(self._root) if self._fs.exists(self._root) else ()
            return tuple(sorted(one.removeprefix(self._root).lstrip("/") for one in found))

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with everything below it; nothing happens when there is none."""
        with self._translated("remove", path):
            if self._fs.exists(self._path(path)):
                self._fs.rm(self._path(path), recursive=True)

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _translated(self, verb: str, name: str) -> Generator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            where = f"{self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]}:{name}"
            raise Unavailable(f"cannot {verb} {where}: {type(error).__name__}: {error}") from error
