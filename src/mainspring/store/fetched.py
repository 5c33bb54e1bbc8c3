"""Artifacts as folders: kept for the next time, no more of them than settings allow, none taken from under a reader.

A store holds a shared lock on everything it has fetched, which the kernel drops when the process ends, however it
ends. What is removed is what no process holds, longest unused first. Files that are hard links to the contents of a
local store take no room of their own and do not count.
"""

import fcntl
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

GB = 1_000_000_000


class Fetched:
    """The folders below `root`, by the digest of their artifact; those this handle has given out are held."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self._held: dict[str, IO[str]] = {}
        self._lock = threading.Lock()

    def hold(self, digest: str) -> Path:
        """The folder of an artifact, which nobody removes until `release`; it need not be there yet."""
        mark = self.root / f"{digest}.use"
        with self._lock:
            if digest not in self._held:
                self.root.mkdir(parents=True, exist_ok=True)
                handle = mark.open("a")
                fcntl.flock(handle, fcntl.LOCK_SH)
                self._held[digest] = handle
        os.utime(mark)
        return self.root / digest

    def release(self) -> None:
        """Let go of everything."""
        with self._lock:
            for handle in self._held.values():
                handle.close()
            self._held.clear()

    def prune(self, scratch: Path) -> Iterator[tuple[str, int]]:
        """Remove what is beyond the limit, longest unused first; digest and bytes of each.

        A folder is renamed into `scratch`, on the same disk, before it is deleted file by file.
        """
        folders = sorted((path for path in self.root.glob("*") if path.is_dir()), key=_last_used)
        sizes = {folder: _own_bytes(folder) for folder in folders}
        total = sum(sizes.values())
        for folder in folders:
            if total <= self.limit_bytes:
                return
            if sizes[folder] and self._remove(folder, scratch):
                total -= sizes[folder]
                yield folder.name, sizes[folder]

    def _remove(self, folder: Path, scratch: Path) -> bool:
        """Whether the folder was here and used by nobody; it is gone then."""
        with folder.with_name(f"{folder.name}.use").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not folder.exists():  # another process was quicker
                return False
            folder.with_name(f"{folder.name}.json").unlink(missing_ok=True)
            shutil.rmtree(folder.rename(scratch / folder.name))
            return True


def _last_used(folder: Path) -> float:
    try:
        return folder.with_name(f"{folder.name}.use").stat().st_mtime
    except FileNotFoundError:  # fetched before uses were noted
        return 0.0


def _own_bytes(folder: Path) -> int:
    total = 0
    for below, _, names in os.walk(folder):  # unlike rglob it takes a folder for empty that another process removes
        for name in names:
            with suppress(FileNotFoundError):
                found = Path(below, name).lstat()
                total += found.st_size if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0
    return total
