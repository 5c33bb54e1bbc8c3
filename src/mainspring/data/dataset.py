"""`Dataset`: the user's handle on a collection of documents, a lazy chain that ends in a published snapshot.

    ws.dataset("handbook").read("docs/**/*.md").clean().dedup().publish()

Each verb returns a new chain and does nothing yet; `.frame`, `.report` and `.publish()` run it, once. A chain that
reads nothing starts from the newest snapshot, which is how corrections continue where the last publish stopped.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mainspring.data import snapshot as snapshots
from mainspring.data.clean import Rules, clean
from mainspring.data.dedup import Policy, dedup
from mainspring.data.documents import SCHEMA, to_table
from mainspring.data.feedback import Correction, corrected_document, to_corrections
from mainspring.data.frame import daft
from mainspring.data.read import read
from mainspring.spec import (
    Artifact,
    CurationReport,
    Feedback,
    Progress,
    RuleCount,
    Skipped,
    Snapshot,
    SnapshotDiff,
    silent,
)
from mainspring.store import Store


@dataclass(slots=True)
class _Collection:
    """What a chain has gathered so far; `read` counts every document that ever came in."""

    table: pa.Table
    read: int = 0
    read_bytes: int = 0
    rules: tuple[RuleCount, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def add(self, table: pa.Table) -> None:
        self.table = pa.concat_tables([self.table, table])
        self.read += table.num_rows
        self.read_bytes += _bytes(table)

    def report(self) -> CurationReport:
        return CurationReport(
            read=self.read,
            kept=self.table.num_rows,
            read_bytes=self.read_bytes,
            kept_bytes=_bytes(self.table),
            rules=_merged(self.rules),
            skipped=self.skipped,
        )


_Step = Callable[[_Collection, Progress], None]


class Dataset:
    """A named dataset and the steps that will make its next version."""

    def __init__(self, store: Store, name: str, steps: tuple[tuple[str, _Step], ...] = ()) -> None:
        self.name = name
        self._store = store
        self._steps = steps
        self._result: _Collection | None = None

    def read(self, source: str, *more: str) -> "Dataset":
        """Add the documents of `source`: `python:docs`, a file, a folder, a glob, or a reader plugin's scheme."""

        def step(collection: _Collection, progress: Progress) -> None:
            for one in (source, *more):
                table, skipped = read(one, progress=progress)
                collection.add(table)
                collection.skipped += skipped
            _drop_repeated(collection)

        return self._then("read", step)

    def clean(self, *, rules: Rules | None = None) -> "Dataset":
        """Repair texts and drop what is not worth learning from; `rules` overrides limits (`clean.FILTERS`)."""

        def step(collection: _Collection, progress: Progress) -> None:
            collection.table, counts = clean(collection.table, rules=rules, progress=progress)
            collection.rules += counts
            _drop_repeated(collection)

        return self._then("clean", step)

    def dedup(self, *, policy: Policy = "balanced") -> "Dataset":
        """Keep one of each group of exact or near copies."""

        def step(collection: _Collection, progress: Progress) -> None:
            collection.table, counts = dedup(collection.table, policy=policy, progress=progress)
            collection.rules += counts

        return self._then("dedup", step)

    def correct(self, feedback: Iterable[Feedback | Correction]) -> "Dataset":
        """Apply corrections: each replaces, adds or (without text) removes the document at its source."""
        given = tuple(feedback)

        def step(collection: _Collection, progress: Progress) -> None:
            rows = [row for row in given if isinstance(row, Feedback)]
            corrections = to_corrections(self._store, rows)
            corrections += tuple(row for row in given if isinstance(row, Correction))
            _apply(collection, {correction.source: correction for correction in corrections})
            progress(1.0, f"applied {len(corrections)} corrections")

        return self._then("correct", step)

    @property
    def frame(self) -> daft.DataFrame:
        """The documents so far as a Daft frame; of a chain without steps, the newest snapshot, lazily."""
        if not self._steps:
            return snapshots.open_snapshot(self._store, self._ref())
        return daft.from_arrow(self._run(silent).table)

    @property
    def report(self) -> CurationReport:
        """What was read, kept and dropped, and why; of a chain without steps, that of the newest snapshot."""
        if not self._steps:
            return snapshots.report(self._store, self._ref())
        return self._run(silent).report()

    def publish(self, *, run: str = "", progress: Progress = silent) -> Artifact:
        """Run the chain and commit its documents as the dataset's next version."""
        collection = self._run(progress)
        return snapshots.publish(
            self._store, self.name, collection.table, collection.report(), run=run, progress=_last(progress)
        )

    def snapshot(self, version: int | None = None) -> Snapshot:
        """The published snapshot of this version, or the newest one."""
        return snapshots.load_snapshot(self._store, self._ref(version))

    def at(self, version: int) -> daft.DataFrame:
        """The documents as they were in a published version."""
        return snapshots.open_snapshot(self._store, self._ref(version))

    def diff(self, before: int, after: int) -> SnapshotDiff:
        """Which documents differ between two published versions."""
        return snapshots.diff(self._store, self._ref(before), self._ref(after))

    def _ref(self, version: int | None = None) -> str:
        return f"{snapshots.KIND}:{self.name}" + ("" if version is None else f"@{version}")

    def _then(self, name: str, step: _Step) -> "Dataset":
        return Dataset(self._store, self.name, (*self._steps, (name, step)))

    def _run(self, progress: Progress) -> _Collection:
        if self._result is None:
            collection = _Collection(table=SCHEMA.empty_table())
            if not self._steps or self._steps[0][0] != "read":
                collection.add(snapshots.read_table(self._store, self._ref()))
            for number, (_, step) in enumerate(self._steps):
                step(collection, _part(progress, number, len(self._steps) + 1))
            self._result = collection
        return self._result


def _part(progress: Progress, number: int, of: int) -> Progress:
    return lambda fraction, message: progress((number + fraction) / of, message)


def _last(progress: Progress) -> Progress:
    return lambda fraction, message: progress(0.9 + fraction / 10, message)


def _bytes(table: pa.Table) -> int:
    """UTF-8 bytes of the texts."""
    lengths = pc.call_function("binary_length", [table["text"]])
    return int(pc.call_function("sum", [lengths]).as_py() or 0)


def _drop_repeated(collection: _Collection) -> None:
    """Ids are unique from here on: a file matched by two globs is one document."""
    ids = collection.table["id"].to_numpy()
    _, first = np.unique(ids, return_index=True)
    repeated = len(ids) - len(first)
    if repeated:
        collection.table = collection.table.take(np.sort(first))
        collection.rules += (RuleCount(rule="read_twice", dropped=repeated),)


def _apply(collection: _Collection, corrections: dict[str, Correction]) -> None:
    """Take out what corrections replace, and put in what they say."""
    if not corrections:
        return
    hit = np.isin(collection.table["source"].to_numpy().astype(object), list(corrections))
    examples = tuple(
        f"{source}: {corrections[source].reason or 'corrected'}"
        for source in collection.table["source"].filter(pa.array(hit)).to_pylist()[:5]
    )
    collection.rules += (RuleCount(rule="corrected", dropped=int(hit.sum()), examples=examples),)
    collection.table = collection.table.filter(pa.array(~hit))
    documents = [document for c in corrections.values() if (document := corrected_document(c))]
    collection.add(to_table(documents))


def _merged(rules: Iterable[RuleCount]) -> tuple[RuleCount, ...]:
    """One row for each rule, in the order they first ran."""
    dropped: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    examples: dict[str, tuple[str, ...]] = {}
    for count in rules:
        dropped[count.rule] += count.dropped
        changed[count.rule] += count.changed
        examples[count.rule] = (*examples.get(count.rule, ()), *count.examples)[:5]
    return tuple(
        RuleCount(rule=rule, dropped=dropped[rule], changed=changed[rule], examples=examples[rule]) for rule in examples
    )
