"""Publish and fetch artifacts. The commit of one database row is the moment an artifact exists.

Order of a publish: contents first (`blobs.put`), then one transaction that looks once more whether every content is
there, takes the next version and writes the rows. Contents are deleted only inside a transaction too, so a
publisher either sees that another process cleaned a content away, and stores it again, or its row protects it.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select

from mainspring.spec import Artifact, FileEntry, NotFound, Settings, SpecError, Unavailable
from mainspring.store.blobs import LocalBlobs, open_blobs, owned_name
from mainspring.store.catalogue import check_name, check_tag
from mainspring.store.database import artifacts, files
from mainspring.store.fetched import GB, Fetched
from mainspring.store.lock import file_lock
from mainspring.store.parse import to_json
from mainspring.store.runs import RunLog


class Shelf(RunLog):
    """Publish and fetch the artifacts of this workspace."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._blobs = open_blobs(settings.artifacts, self.id)
        url = settings.artifacts_url
        self._fetched = Fetched(self.home / "fetched", settings.fetched_gb * GB)
        self._shared = f"{url.removeprefix('file://').rstrip('/')}/{self.id}" if "://" in url else str(self.home)

    def place(self, path: str) -> str:
        """The folder or fsspec URL `path` for what is no artifact but must be as reachable as artifacts are.

        Beside them, when settings give them a URL; under home when they are just a folder.
        """
        return f"{self._shared}/{path}"

    def needs(self, run_id: str) -> tuple[str, ...]:
        """What a process on another machine must see of this one's disk to work on a run with this store.

        Nothing, when the database is a server and artifacts are on an object store. The paths hold the run's or the
        store's own id, so that another machine's home of the same name is not taken for this one.
        """
        found = [self.run_dir(run_id)] if self._engine.dialect.name == "sqlite" else []
        if isinstance(self._blobs, LocalBlobs):
            found.append(self._blobs.root)
        return tuple(map(str, found))

    def publish(
        self,
        kind: str,
        name: str,
        source: Path,
        *,
        meta: Mapping[str, Any] | None = None,
        run: str = "",
        inputs: Sequence[str] = (),
        tags: Sequence[str] = (),
    ) -> Artifact:
        """Store a file or folder as the next version of `kind:name`, whole or not at all.

        The same files and metadata published again give the version they already have. `run` is recorded as the
        maker and `inputs` as what it read; inputs without a run get a run of kind "publish" so that the lineage is
        not lost. Raises `NotFound` for a missing source, `SpecError` for an empty one, `Unavailable` for a full disk.
        """
        check_name(kind, name)
        for tag in tags:
            check_tag(tag)
        meta_json = to_json(meta or {})
        sources = list(_walk(Path(source)))
        refs = [self.resolve(ref).ref for ref in inputs]
        with self._stored(sources) as (connection, entries):
            maker = self.run(run).id if run else self._anonymous(name, refs)
            artifact = self._enter(connection, kind, name, entries, meta_json, maker)
            for ref in refs:
                self._connect(maker, ref, "input")
            for tag in tags:
                artifact = self.tag(artifact.ref, tag)
            return artifact

    def fetch(self, ref: str | Artifact) -> Path:
        """A local read-only folder with the artifact's files, each verified against its digest.

        Folders are kept, and this one at least until the store is closed; later calls compare sizes and modification
        times with those seen at verification and verify again when they differ.
        """
        artifact = self.resolve(ref) if isinstance(ref, str) else ref
        try:
            folder = self._fetched.hold(artifact.digest)
            seal = folder.with_name(f"{artifact.digest}.json")
            if _sealed(folder, seal):
                return folder
            # One fetches, the others wait: a folder that somebody was given is not taken from under their feet.
            with file_lock(folder.with_name(f"{artifact.digest}.lock")):
                if not _sealed(folder, seal):
                    self._assemble(artifact, folder, seal)
            self.prune_fetched()
        except OSError as error:
            raise Unavailable(
                f"cannot fetch {artifact.ref}: {error.strerror or error}", hint="free some disk space and try again"
            ) from error
        return folder

    def prune_fetched(self) -> tuple[tuple[str, int], ...]:
        """Remove fetched folders beyond `fetched_gb` that no process holds; digest and bytes of each."""
        with self.scratch() as scratch:
            return tuple(self._fetched.prune(scratch))

    def close(self) -> None:
        """Close the database and let go of what was fetched."""
        super().close()
        self._fetched.release()

    def _assemble(self, artifact: Artifact, folder: Path, seal: Path) -> None:
        """Put the artifact's verified files into `folder`, in place of whatever is there, and note what they are."""
        with self.scratch() as scratch:
            fresh = scratch / "files"
            for entry in artifact.files:
                target = fresh / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._blobs.get(entry, target)
            if folder.exists():
                folder.rename(scratch / "damaged")
            fresh.rename(folder)
            _write_whole(seal, to_json(_stamps(folder)))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A fresh folder under home that is removed on exit."""
        folder = self.home / "scratch" / owned_name()
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise Unavailable(f"cannot make {folder}: {error.strerror}", hint="free some disk space") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _stored(self, sources: Sequence[tuple[str, Path]]) -> Iterator[tuple[Connection, list[FileEntry]]]:
        """A transaction in which the contents of all `sources` are present; they are removed again if it fails."""
        new: set[str] = set()
        try:
            entries = [self._put(path, at, new) for path, at in sources]
            with self.transaction(durability="power") as connection:
                # A doctor may have removed what lay here unused before we came; nobody removes anything from here on.
                for index, entry in enumerate(entries):
                    if not self._blobs.has(entry.digest, entry.size_bytes):
                        entries[index] = self._put(*sources[index], new)
                yield connection, entries
        except BaseException:
            self._discard(new)
            raise

    def _put(self, path: str, at: Path, new: set[str]) -> FileEntry:
        digest, size, was_new = self._blobs.put(at)
        if was_new:
            new.add(digest)
        return FileEntry(path=path, digest=digest, size_bytes=size)

    def _anonymous(self, name: str, refs: Sequence[str]) -> str:
        if not refs:
            return ""
        made = self.start_run("publish", name, config={"inputs": list(refs)})
        self.set_run_state(made.id, "RUNNING")
        return self.set_run_state(made.id, "SUCCEEDED").id

    def _enter(
        self,
        connection: Connection,
        kind: str,
        name: str,
        entries: Sequence[FileEntry],
        meta_json: str,
        run: str,
    ) -> Artifact:
        """Write the rows of a new version, or find the version that already has this content."""
        digest = _digest(entries, meta_json)
        same_name = (artifacts.c.workspace == self.workspace) & (artifacts.c.kind == kind) & (artifacts.c.name == name)
        version = connection.execute(
            select(artifacts.c.version).where(same_name, artifacts.c.digest == digest)
        ).scalar()
        if version is None:
            last = connection.execute(select(func.max(artifacts.c.version)).where(same_name)).scalar()
            version = (last or 0) + 1
            values = {"workspace": self.workspace, "kind": kind, "name": name, "version": version, "digest": digest}
            values |= {"size_bytes": sum(entry.size_bytes for entry in entries), "created_s": time.time()}
            row = insert(artifacts).values(**values, meta_json=meta_json, run=run).returning(artifacts.c.id)
            key = connection.execute(row).scalar_one()
            connection.execute(
                insert(files),
                [{"artifact": key, "path": e.path, "digest": e.digest, "size_bytes": e.size_bytes} for e in entries],
            )
            self.emit("artifact.published", f"{kind}:{name}@{version}", {"digest": digest, "run": run})
        if run:
            self._connect(run, f"{kind}:{name}@{version}", "output")
        return self.resolve(f"{kind}:{name}@{version}")

    def _discard(self, digests: set[str]) -> None:
        """Remove contents that a failed publish brought and nobody came to rely on.

        When even that cannot be done now, the doctor finds them later.
        """
        with suppress(Unavailable, OSError):
            for digest in digests:
                with self.transaction() as connection:
                    used = select(files.c.digest).where(files.c.digest == digest).limit(1)
                    if connection.execute(used).scalar() is None:
                        self._blobs.delete(digest)


def _digest(entries: Sequence[FileEntry], meta_json: str) -> str:
    listed = sorted([entry.path, entry.digest, entry.size_bytes] for entry in entries)
    return hashlib.sha256(to_json({"files": listed, "meta": meta_json}).encode()).hexdigest()


def _walk(source: Path) -> Iterator[tuple[str, Path]]:
    """The relative path and place of every file of `source`, in order; links to files are followed."""
    if source.is_file():
        yield source.name, source
        return
    if not source.exists():
        raise NotFound(f"no file or folder {source}")
    count = 0
    for folder, below, names in os.walk(source, onerror=_refuse):
        below.sort()
        for name in [*sorted(names), *below]:
            at = Path(folder) / name
            relative = at.relative_to(source).as_posix()
            if name in below and not at.is_symlink():
                continue
            if not at.is_file() or not relative.isprintable():
                raise SpecError(f"cannot publish {at}", hint="only regular files with printable names can be published")
            count += 1
            yield relative, at
    if not count:
        raise SpecError(f"{source} is empty; there is nothing to publish")


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed must not be left out: what is published is whole."""
    raise SpecError(f"cannot read {error.filename}: {error.strerror}", hint="check its permissions") from error


def _stamps(folder: Path) -> dict[str, list[int]]:
    return {
        path.relative_to(folder).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _sealed(folder: Path, seal: Path) -> bool:
    try:
        return json.loads(seal.read_text(encoding="utf-8")) == _stamps(folder)
    except (FileNotFoundError, ValueError):  # never fetched, or a seal that a power cut left half written
        return False


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{owned_name()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
