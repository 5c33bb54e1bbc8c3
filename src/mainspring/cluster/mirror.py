"""Bring the files of a remote run folder to the driver, without a shared file system.

Append-only text (by suffix) is followed while it grows: the driver holds one cursor per file and asks for what comes
after it, so nothing is sent twice and a lost answer is simply asked for again. A file that was replaced or shrank
starts over. Everything else is copied once, when the gang has ended and the files no longer change.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mainspring.spec import spec

FOLLOWED = frozenset({".log", ".jsonl", ".txt", ".csv"})
PIECE_BYTES = 4 << 20
TAIL_BYTES = 64


@spec
class Cursor:
    """How far one file has been copied, and the last bytes before `offset`.

    A grown file still has them there and a replaced one has another inode; numbers of inodes are used again, so
    neither test is enough alone.
    """

    inode: int
    offset: int
    tail: bytes = b""


@spec
class Chunk:
    """`data` at `offset` of the file `path`, which is relative to the run folder."""

    path: str
    inode: int
    offset: int
    data: bytes


def grown(folder: Path, cursors: Mapping[str, Cursor]) -> tuple[Chunk, ...]:
    """What was appended to followed files since `cursors`, at most `PIECE_BYTES` in all, an equal share of each."""
    names = followed(folder)
    chunks: list[Chunk] = []
    for name in names:
        try:
            chunk = _growth(folder, name, cursors.get(name), size=max(1, PIECE_BYTES // len(names)))
        except OSError:
            continue  # removed since it was listed, or not for us to read: no reason to lose the gang
        if chunk is not None:
            chunks.append(chunk)
    return tuple(chunks)


def _growth(folder: Path, name: str, cursor: Cursor | None, *, size: int) -> Chunk | None:
    path = folder / name
    seen = cursor.offset if cursor and _continues(path, cursor) else 0
    if cursor and seen == cursor.offset == path.stat().st_size:
        return None
    return read_piece(folder, name, offset=seen, size=size)


def listing(folder: Path) -> tuple[str, ...]:
    """The files that are not followed, for the copy at the end."""
    files = (path.relative_to(folder) for path in _files(folder))
    return tuple(path.as_posix() for path in files if path.suffix not in FOLLOWED)


def followed(folder: Path) -> tuple[str, ...]:
    """The files that are followed."""
    files = (path.relative_to(folder) for path in _files(folder))
    return tuple(path.as_posix() for path in files if path.suffix in FOLLOWED)


def read_piece(folder: Path, name: str, *, offset: int, size: int = PIECE_BYTES) -> Chunk:
    """Up to `size` bytes of the file `name` from `offset`."""
    with (folder / name).open("rb") as file:
        inode = os.fstat(file.fileno()).st_ino
        file.seek(offset)
        return Chunk(path=name, inode=inode, offset=offset, data=file.read(size))


def write_piece(folder: Path, chunk: Chunk) -> None:
    """Put `chunk` where it belongs below `folder`; the file ends behind it."""
    target = folder / chunk.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("r+b" if target.exists() and chunk.offset else "wb") as file:
        file.seek(chunk.offset)
        file.write(chunk.data)
        file.truncate()


class Mirror:
    """The driver's copy of one node's run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cursors: dict[str, Cursor] = {}

    def apply(self, chunks: Sequence[Chunk]) -> None:
        """Write `chunks` where they belong and move the cursors behind them."""
        for chunk in chunks:
            write_piece(self.folder, chunk)
            end = chunk.offset + len(chunk.data)
            before = self.cursors[chunk.path].tail if chunk.offset else b""
            tail = (before + chunk.data)[-TAIL_BYTES:]
            self.cursors[chunk.path] = Cursor(inode=chunk.inode, offset=end, tail=tail)

    def copy(self, names: Sequence[str], read: Callable[[str, int], Chunk]) -> None:
        """Copy whole files piece by piece; a file appears under its name only when it is complete."""
        for name in names:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(target.name + ".part")
            with part.open("wb") as file:
                while data := read(name, file.tell()).data:
                    file.write(data)
            part.replace(target)


def _continues(path: Path, cursor: Cursor) -> bool:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_ino != cursor.inode:
            return False
        file.seek(cursor.offset - len(cursor.tail))
        return file.read(len(cursor.tail)) == cursor.tail


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root) / name
            if path.is_file() and not path.is_symlink():
                yield path
