"""Published versions of a dataset: Lance for the rows, one small artifact for each version.

All versions of a dataset are one Lance table. A publish is a single merge, committed atomically, that inserts the
documents that are new and deletes those that are gone, so that a version costs what changed and older ones stay
readable. The artifact (`manifest.json`, `report.json`) is written after the commit: a process killed in between
leaves a Lance version that nothing refers to, and the next publish of the same documents takes it up.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from mainspring.data.documents import SCHEMA, to_documents
from mainspring.data.frame import ColumnOrdering, daft, lance
from mainspring.spec import (
    Artifact,
    CurationReport,
    Document,
    NotFound,
    Progress,
    Snapshot,
    SnapshotDiff,
    SpecError,
    Unavailable,
    silent,
    spec,
)
from mainspring.store import Store
from mainspring.store.catalogue import check_name
from mainspring.store.parse import read_json, to_json

KIND = "dataset"
RETRIES = 30  # other publishers that may commit between our reading and our commit
_OBJECT_STORES = frozenset({"s3", "gs", "az", "abfss"})  # fsspec's names of stores that Lance knows by the same name

log = logging.getLogger(__name__)


@spec
class Manifest:
    """What `manifest.json` holds: where the rows are and what they are."""

    uri: str
    version: int
    rows: int
    digest: str


def publish(
    store: Store,
    name: str,
    table: pa.Table,
    report: CurationReport,
    *,
    run: str = "",
    progress: Progress = silent,
) -> Artifact:
    """Commit `table` as the next version of the dataset `name` and return its artifact.

    Publishing what is already the newest version returns it again. Raises `SpecError` for an empty table,
    `Unavailable` when the disk or object store refuses.
    """
    check_name(KIND, name)
    if not table.num_rows:
        raise SpecError(
            f"dataset {name!r} would be empty: 0 of {report.read} documents were kept",
            hint="the report says which rule dropped them: " + _worst(report),
        )
    table = table.select(SCHEMA.names).cast(SCHEMA)
    progress(0.0, f"publishing {table.num_rows} documents of {name}")
    manifest = _commit(dataset_uri(store, name), table)
    with store.scratch() as folder:
        (folder / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
        (folder / "report.json").write_text(to_json(report), encoding="utf-8")
        meta = {"rows": manifest.rows, "lance_version": manifest.version, "read": report.read}
        artifact = store.publish(KIND, name, folder, meta=meta, run=run)
    log.info("dataset published", extra={"ref": artifact.ref, "rows": manifest.rows})
    progress(1.0, f"published {artifact.ref}: {manifest.rows} documents")
    return artifact


def dataset_uri(store: Store, name: str) -> str:
    """Where the rows of a dataset live: beside the artifacts when settings give these a URL, else under home.

    Raises `SpecError` for a URL that Lance cannot write to: rows on this disk would be missing wherever else the
    snapshot is read.
    """
    uri = store.place(f"datasets/{store.workspace}/{name}.lance")
    scheme, remote, _ = uri.partition("://")
    if remote and scheme not in _OBJECT_STORES:
        raise SpecError(
            f"datasets cannot be kept at {scheme}://",
            hint="point MAINSPRING_ARTIFACTS_URL at s3://, gs://, az:// or abfss://, or at a shared folder as file://",
        )
    return uri


def load_snapshot(store: Store, ref: str) -> Snapshot:
    """The snapshot `ref` names. Raises `NotFound`, or `SpecError` when it is no dataset."""
    artifact = store.resolve(ref)
    manifest = read_json(_file(store, artifact, "manifest.json"), Manifest, artifact.ref)
    return Snapshot(
        ref=artifact.ref,
        uri=manifest.uri,
        version=manifest.version,
        rows=manifest.rows,
        digest=manifest.digest,
    )


def report(store: Store, ref: str) -> CurationReport:
    """What was read, kept and dropped on the way to this snapshot."""
    artifact = store.resolve(ref)
    return read_json(_file(store, artifact, "report.json"), CurationReport, artifact.ref)


def open_snapshot(store: Store, ref: str) -> daft.DataFrame:
    """The snapshot as a lazy Daft frame; nothing is read until it is asked for something."""
    snapshot = load_snapshot(store, ref)
    _open(snapshot)
    return daft.read_lance(snapshot.uri, version=snapshot.version)


def read_table(store: Store, ref: str) -> pa.Table:
    """The whole snapshot in memory, ordered by source."""
    with _storage("read", ref):
        table = _open(load_snapshot(store, ref)).to_table()
    return table.sort_by([("source", "ascending"), ("id", "ascending")])


def texts(store: Store, ref: str) -> Iterator[Document]:
    """Documents of a snapshot, ordered by id, a few hundred in memory at a time.

    Ids are digests, so this order depends on the documents alone and mixes their sources.
    """
    dataset = _open(load_snapshot(store, ref))
    with _storage("read", ref):
        scanner = dataset.scanner(order_by=[ColumnOrdering("id")], batch_size=512)
        yield from to_documents(scanner.to_batches())


def sources(store: Store, ref: str) -> frozenset[str]:
    """Every source that has a document in the snapshot."""
    return frozenset(_by_id(store, ref).values())


def diff(store: Store, before: str, after: str) -> SnapshotDiff:
    """What changed between two snapshots; by source."""
    old, new = _by_id(store, before), _by_id(store, after)
    gone = {source for id_, source in old.items() if id_ not in new}
    come = {source for id_, source in new.items() if id_ not in old}
    return SnapshotDiff(
        added=tuple(sorted(come - gone)), removed=tuple(sorted(gone - come)), changed=tuple(sorted(come & gone))
    )


def _commit(uri: str, table: pa.Table) -> Manifest:
    digest = ids_digest(table["id"].to_pylist())
    with _storage("write", uri):
        dataset = _write(uri, table, digest)
        version = dataset.version
        written = lance.dataset(uri, version=version)
        if _digest_of(written) != digest:
            raise Unavailable(f"{uri} version {version} is not what was written", hint="publish again")
    return Manifest(uri=uri, version=version, rows=table.num_rows, digest=digest)


def _write(uri: str, table: pa.Table, digest: str) -> lance.LanceDataset:
    """The dataset at a version that holds `table` and nothing else, whoever else writes to it at the same time.

    Lance retries a merge that races with a merge, but gives up when another publisher's first write came between; the
    merge is then made again from the new version. An error without such a writer is the disk's.
    """
    for _ in range(RETRIES):
        try:
            dataset = lance.dataset(uri)
        except ValueError:  # not there yet
            dataset = _create(uri, table)
        before = dataset.version
        if _digest_of(dataset) == digest:
            return dataset
        merge = dataset.merge_insert("id").when_not_matched_insert_all()
        try:
            merge.when_not_matched_by_source_delete().conflict_retries(RETRIES).execute(table)
        except OSError:
            if lance.dataset(uri).version == before:
                raise
        else:
            return dataset
    raise Unavailable(f"{uri} was changed by others {RETRIES} times while it was written", hint="publish again")


def _create(uri: str, table: pa.Table) -> lance.LanceDataset:
    try:
        return lance.write_dataset(table, uri, mode="create")
    except OSError:
        return lance.dataset(uri)  # another publisher was first; a disk error shows again here


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 over sorted document ids: equal collections have equal digests, in whatever order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _digest_of(dataset: lance.LanceDataset) -> str:
    return ids_digest(dataset.to_table(columns=["id"])["id"].to_pylist())


def _open(snapshot: Snapshot) -> lance.LanceDataset:
    try:
        return lance.dataset(snapshot.uri, version=snapshot.version)
    except (ValueError, OSError) as error:
        raise NotFound(
            f"the rows of {snapshot.ref} are gone: no version {snapshot.version} at {snapshot.uri}",
            hint="datasets/ was moved or deleted; publish it again",
        ) from error


def _by_id(store: Store, ref: str) -> dict[str, str]:
    """The source of every document id."""
    with _storage("read", ref):
        table = _open(load_snapshot(store, ref)).to_table(columns=["id", "source"])
    return dict(zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True))


def _file(store: Store, artifact: Artifact, name: str) -> str:
    if artifact.kind != KIND:
        raise SpecError(f"{artifact.ref} is of kind {artifact.kind}, not a dataset")
    return (store.fetch(artifact) / name).read_text(encoding="utf-8")


def _worst(report: CurationReport) -> str:
    rules = sorted(report.rules, key=lambda count: -count.dropped)[:3]
    return ", ".join(f"{count.rule} {count.dropped}" for count in rules if count.dropped) or "nothing was read"


@contextmanager
def _storage(verb: str, what: str) -> Iterator[None]:
    """Lance reports a full disk, a lost network and a corrupt file as OSError, ValueError or RuntimeError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise Unavailable(f"cannot {verb} {what}: {error}", hint="is there space on the disk?") from error
