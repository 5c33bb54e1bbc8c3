"""Look the store over: what a crash left behind, and what a disk lost.

Nothing here guesses: leftovers are files whose writer is gone and contents no row refers to; damage is a content
that is missing or no longer has its digest. Leftovers can be removed; damage can only be told, because the same files
published again restore it.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from mainspring.spec import Failed, FileEntry
from mainspring.store.artifacts import Shelf
from mainspring.store.blobs import is_abandoned_folder
from mainspring.store.database import artifacts, files


class Doctor(Shelf):
    """Examine and tidy the store, all workspaces together."""

    def doctor(self, *, repair: bool = False, contents: bool = True) -> tuple[str, ...]:
        """Every finding in a sentence, none when all is well; `repair` removes leftovers and ends dead runs.

        `contents` verifies everything that is stored, which takes as long as reading it.
        """
        return (
            *self._dead_runs(repair=repair),
            *self._scratch(repair=repair),
            *self._unfinished(repair=repair),
            *self._orphans(repair=repair),
            *(self._beyond_the_limit() if repair else ()),
            *(self._damaged() if contents else ()),
        )

    def _dead_runs(self, *, repair: bool) -> Iterator[str]:
        for record in self.reap_dead_runs() if repair else self.dead_runs():
            yield f"run {record.id} was {'marked FAILED' if repair else 'left unfinished'}: its process is gone"

    def _scratch(self, *, repair: bool) -> Iterator[str]:
        for folder in sorted((self.home / "scratch").glob("*")):
            with suppress(FileNotFoundError):
                if is_abandoned_folder(folder):
                    if repair:
                        shutil.rmtree(folder)
                    yield f"scratch folder {folder.name} of a process that is gone{_removed(repair=repair)}"

    def _unfinished(self, *, repair: bool) -> Iterator[str]:
        for name in self._blobs.unfinished():
            if repair:
                self._blobs.drop_unfinished(name)
            yield f"unfinished content {name} of a process that is gone{_removed(repair=repair)}"

    def _orphans(self, *, repair: bool) -> Iterator[str]:
        for digest in self._blobs.digests():
            # One short transaction each: a publisher waits at most for one deletion.
            with self.transaction() as connection:
                used = select(files.c.digest).where(files.c.digest == digest).limit(1)
                if connection.execute(used).scalar() is not None:
                    continue
                if repair:
                    self._blobs.delete(digest)
            yield f"content {digest[:12]} belongs to no artifact{_removed(repair=repair)}"

    def _beyond_the_limit(self) -> Iterator[str]:
        for digest, size in self.prune_fetched():
            yield f"fetched artifact {digest[:12]}, {size / 1e6:.0f} MB, was used longest ago, removed"

    def _damaged(self) -> Iterator[str]:
        query = (
            select(files, artifacts.c.kind, artifacts.c.name, artifacts.c.version)
            .join(artifacts, artifacts.c.id == files.c.artifact)
            .order_by(artifacts.c.id, files.c.path)
        )
        with self.read() as connection:
            rows = connection.execute(query).all()
        verdicts: dict[str, str] = {}
        with self.scratch() as scratch:
            for row in rows:
                if row.digest not in verdicts:
                    entry = FileEntry(path=row.path, digest=row.digest, size_bytes=row.size_bytes)
                    verdicts[row.digest] = self._examine(entry, scratch / "content")
                if verdicts[row.digest]:
                    yield f"{row.kind}:{row.name}@{row.version}: {verdicts[row.digest]}"

    def _examine(self, entry: FileEntry, target: Path) -> str:
        try:
            self._blobs.get(entry, target)
        except Failed as error:
            return str(error)
        finally:
            target.unlink(missing_ok=True)
        return ""


def _removed(*, repair: bool) -> str:
    return ", removed" if repair else ""
