"""What people said about answers, read back from the event log, and the corrections in it.

Applications append two kinds of event, subject the application's name: `trace` (data: a `Trace`) and `feedback`
(data: a `Feedback` that names its trace). This room reads them; nothing imports upwards.
"""

import time
from collections.abc import Iterable

import pyarrow as pa

from mainspring.data.documents import make_document
from mainspring.spec import Document, Feedback, SpecError, Trace, spec
from mainspring.store import Store
from mainspring.store.parse import read_json

DAY_S = 86_400.0
PAGE = 1000


@spec
class Correction:
    """A change of a dataset: `text` becomes the document at `source`; an empty text removes what is there."""

    source: str
    text: str
    title: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("a correction needs the source of the document it is about")


def feedback_rows(store: Store, app: str = "", *, days: float = 7.0) -> tuple[Feedback, ...]:
    """Feedback of the last `days`, oldest first, of one application or (`app` empty) of all."""
    since = time.time() - days * DAY_S
    rows = (read_json(data, Feedback) for data in _events(store, "feedback", app))
    return tuple(row for row in rows if row.time_s >= since)


def feedback_table(store: Store, app: str = "", *, days: float = 7.0) -> pa.Table:
    """One row for each piece of feedback, with the question and answer it is about."""
    traces = {trace.id: trace for trace in _traces(store, app)}
    rows = []
    for row in feedback_rows(store, app, days=days):
        trace = traces.get(row.trace)
        rows.append(
            {
                "trace": row.trace,
                "time_s": row.time_s,
                "author": row.author,
                "thumb": row.thumb,
                "correction": row.correction,
                "comment": row.comment,
                "chunks": list(row.chunks),
                "snapshot": row.snapshot,
                "question": trace.question if trace else "",
                "answer": trace.answer if trace else "",
            }
        )
    return pa.Table.from_pylist(rows, _TABLE)


_TABLE = pa.schema(
    [(name, pa.string()) for name in ("trace", "author", "thumb", "correction", "comment", "snapshot")]
    + [(name, pa.large_string()) for name in ("question", "answer")]
    + [("chunks", pa.list_(pa.string())), ("time_s", pa.float64())]
)


def to_corrections(store: Store, feedback: Iterable[Feedback]) -> tuple[Correction, ...]:
    """The corrections people wrote: question and right answer as a document of its own.

    A second correction of one answer replaces the first. Feedback without a correction changes no document.
    """
    latest = {row.trace: row for row in feedback if row.correction.strip()}
    if not latest:
        return ()
    questions = {trace.id: trace.question for trace in _traces(store, "") if trace.id in latest}
    return tuple(
        Correction(
            source=f"feedback:{trace}",
            title=questions.get(trace, ""),
            text=f"# {questions[trace]}\n\n{row.correction.strip()}\n"
            if trace in questions
            else f"{row.correction.strip()}\n",
            reason=f"thumb {row.thumb} by {row.author}",
        )
        for trace, row in latest.items()
    )


def corrected_document(correction: Correction) -> Document | None:
    """The document that replaces what is at the correction's source, or None when it only removes."""
    if not correction.text.strip():
        return None
    if len(correction.text) > 1 << 20:
        raise SpecError(f"the correction of {correction.source} has {len(correction.text)} characters")
    title = correction.title or correction.source
    return make_document(correction.source, correction.text, title=title, kind="correction")


def _traces(store: Store, app: str) -> Iterable[Trace]:
    return (read_json(data, Trace) for data in _events(store, "trace", app))


def _events(store: Store, kind: str, app: str) -> Iterable[str]:
    """The data of every event of a kind, page by page."""
    after = 0
    while page := store.events(after=after, kind=kind, subject=app or None, limit=PAGE):
        yield from (event.data_json for event in page)
        after = page[-1].seq
