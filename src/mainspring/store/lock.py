"""One process or thread at a time, where no transaction does it: for schema changes and fetched folders."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mainspring.spec import Unavailable


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel drops it when the process ends, however it ends."""
    try:
        handle = path.open("a")
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}", hint="check the folder's permissions") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
