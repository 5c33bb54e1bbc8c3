"""Documents as an Arrow table: the one schema that readers, cleaning, deduplication and snapshots share.

The table is what moves between stages and to disk; `Document` is what a reader yields and an application reads.
"""

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

from mainspring.spec import Document

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("parent", pa.string(), nullable=False),
    ]
)
BATCH = 1024


def document_id(source: str, text: str) -> str:
    """SHA-256 of source and text, so that an edited document is a new document."""
    return hashlib.sha256(f"{source}\0{text}".encode()).hexdigest()


def make_document(source: str, text: str, *, title: str, kind: str, parent: str = "") -> Document:
    """A document with its id computed."""
    return Document(id=document_id(source, text), source=source, title=title, text=text, format=kind, parent=parent)


def to_table(documents: Iterable[Document]) -> pa.Table:
    """Documents in the same order as rows of `SCHEMA`."""
    batches: list[pa.RecordBatch] = []
    pending: list[Document] = []
    for document in documents:
        pending.append(document)
        if len(pending) == BATCH:
            batches.append(_to_batch(pending))
            pending = []
    batches.append(_to_batch(pending))
    return pa.Table.from_batches(batches, SCHEMA)


def to_documents(batches: Iterable[pa.RecordBatch]) -> Iterator[Document]:
    """Rows as documents, one batch in memory at a time."""
    for batch in batches:
        for row in batch.to_pylist():
            yield Document(**row)


def _to_batch(documents: list[Document]) -> pa.RecordBatch:
    columns = [pa.array([getattr(document, field.name) for document in documents], field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
