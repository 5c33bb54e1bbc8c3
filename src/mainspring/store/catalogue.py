"""Which artifacts there are: names, versions, tags and the references that find them.

A reference is `kind:name@version`, `kind:name@tag` or `kind:name` for the newest version.
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from mainspring.spec import Artifact, FileEntry, NotFound, SpecError
from mainspring.store.database import artifacts, files, insert_or_update, tags
from mainspring.store.events import EventLog

REF = re.compile(r"([^:@\s]+):([^:@\s]+)(?:@([^:@\s]+))?")
KIND = re.compile(r"[a-z][a-z0-9_-]{0,63}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


class Catalogue(EventLog):
    """Find, list and tag the artifacts of this workspace."""

    def resolve(self, ref: str) -> Artifact:
        """The artifact `ref` names. Raises `NotFound` with the nearest names, `SpecError` for a malformed one."""
        match = REF.fullmatch(ref)
        if match is None:
            raise SpecError(
                f"{ref!r} is not a reference", hint=self._near(ref) or "write kind:name or kind:name@version"
            )
        kind, name, at = match.groups()
        query = _named(self.workspace, kind, name)
        with self.read() as connection:
            if at is None:
                query = query.order_by(artifacts.c.version.desc()).limit(1)
            elif at.isdecimal():
                query = query.where(artifacts.c.version == int(at[:9]))
            else:
                tagged = select(tags.c.version).where(
                    tags.c.workspace == self.workspace, tags.c.kind == kind, tags.c.name == name, tags.c.tag == at
                )
                query = query.where(artifacts.c.version == tagged.scalar_subquery())
            found = _artifacts(connection, connection.execute(query).all())
        if not found:
            raise NotFound(f"no {ref} in workspace {self.workspace!r}", hint=self._near(ref))
        return found[0]

    def artifacts(self, kind: str | None = None, name: str | None = None, limit: int = 200) -> tuple[Artifact, ...]:
        """Artifacts of this workspace, newest first."""
        query = select(artifacts).where(artifacts.c.workspace == self.workspace)
        if kind is not None:
            query = query.where(artifacts.c.kind == kind)
        if name is not None:
            query = query.where(artifacts.c.name == name)
        with self.read() as connection:
            rows = connection.execute(query.order_by(artifacts.c.id.desc()).limit(limit)).all()
            return _artifacts(connection, rows)

    def newest(self, kind: str) -> tuple[Artifact, ...]:
        """The newest version of every name of a kind, however many versions others have; by name."""
        mine = (artifacts.c.workspace == self.workspace) & (artifacts.c.kind == kind)
        last = (
            select(artifacts.c.name, func.max(artifacts.c.version).label("version"))
            .where(mine)
            .group_by(artifacts.c.name)
            .subquery()
        )
        same = (artifacts.c.name == last.c.name) & (artifacts.c.version == last.c.version)
        query = select(artifacts).join(last, same).where(mine).order_by(artifacts.c.name)
        with self.read() as connection:
            return _artifacts(connection, connection.execute(query).all())

    def tag(self, ref: str, tag: str) -> Artifact:
        """Point `kind:name@tag` at the artifact `ref` names, moving the tag if it stood elsewhere."""
        check_tag(tag)
        with self.transaction() as connection:
            artifact = self.resolve(ref)
            where = {"workspace": self.workspace, "kind": artifact.kind, "name": artifact.name, "tag": tag}
            insert_or_update(connection, tags, key=tuple(where), values={**where, "version": artifact.version})
            self.emit("artifact.tagged", artifact.ref, {"tag": tag})
            return self.resolve(artifact.ref)

    def _near(self, ref: str) -> str:
        """A hint: the versions and tags of the name when it exists, else the names that look most like it."""
        wanted = ref.partition("@")[0]
        with self.read() as connection:
            rows = connection.execute(
                select(artifacts.c.kind, artifacts.c.name)
                .where(artifacts.c.workspace == self.workspace)
                .distinct()
                .order_by(artifacts.c.kind, artifacts.c.name)
                .limit(1000)
            ).all()
        names = [f"{kind}:{name}" for kind, name in rows]
        if wanted in names:
            kind, _, name = wanted.partition(":")
            known = self.artifacts(kind, name)
            labels = [str(artifact.version) for artifact in reversed(known)]
            labels += [tag for artifact in known for tag in artifact.tags]
            return f"{wanted} has " + ", ".join(labels)
        by_name = [name for name in names if name.partition(":")[2] == wanted.rpartition(":")[2]]
        near = by_name or difflib.get_close_matches(wanted, names, n=3)
        if near:
            return f"did you mean {', '.join(near)}?"
        alike = [name for name in names if name.partition(":")[0] == wanted.partition(":")[0]] or names
        return "known: " + ", ".join(alike[:10]) if names else "nothing has been published yet"


def check_name(kind: str, name: str) -> None:
    """Refuse kinds and names that could not be written in a reference or a path."""
    if not KIND.fullmatch(kind):
        raise SpecError(f"{kind!r} is not an artifact kind", hint="lower-case letters, digits, - and _")
    if not NAME.fullmatch(name):
        raise SpecError(
            f"{name!r} is not an artifact name",
            hint="up to 128 letters, digits, dots, - and _, a letter or digit first",
        )


def check_tag(tag: str) -> None:
    """Refuse tags that could be taken for a version or could not be written in a reference."""
    if not TAG.fullmatch(tag):
        raise SpecError(f"{tag!r} is not a tag", hint="a letter, then up to 63 letters, digits, dots, - and _")


def _named(workspace: str, kind: str, name: str) -> Select[Any]:
    return select(artifacts).where(
        artifacts.c.workspace == workspace, artifacts.c.kind == kind, artifacts.c.name == name
    )


def _artifacts(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[Artifact, ...]:
    ids = [row.id for row in rows]
    contents: dict[int, list[FileEntry]] = defaultdict(list)
    labels: dict[int, list[str]] = defaultdict(list)
    for start in range(0, len(ids), 500):  # SQLite allows about a thousand parameters in one statement
        some = ids[start : start + 500]
        entries = select(files).where(files.c.artifact.in_(some)).order_by(files.c.path)
        for row in connection.execute(entries):
            contents[row.artifact].append(FileEntry(path=row.path, digest=row.digest, size_bytes=row.size_bytes))
        same = (
            (tags.c.workspace == artifacts.c.workspace)
            & (tags.c.kind == artifacts.c.kind)
            & (tags.c.name == artifacts.c.name)
            & (tags.c.version == artifacts.c.version)
        )
        labelled = select(artifacts.c.id, tags.c.tag).join(tags, same).where(artifacts.c.id.in_(some))
        for row in connection.execute(labelled.order_by(tags.c.tag)):
            labels[row.id].append(row.tag)
    return tuple(
        Artifact(
            kind=row.kind,
            name=row.name,
            version=row.version,
            digest=row.digest,
            size_bytes=row.size_bytes,
            created_s=row.created_s,
            files=tuple(sorted(contents[row.id], key=lambda entry: entry.path)),
            meta_json=row.meta_json,
            run=row.run,
            tags=tuple(labels[row.id]),
        )
        for row in rows
    )
