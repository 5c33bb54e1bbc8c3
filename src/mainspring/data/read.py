"""Read a source, whatever it is, into documents and a list of what could not be read and why.

A source is `scheme:rest`, answered by the reader plugin of that name (`python:docs` is built in), or a file, a folder
or a glob, answered by `mainspring.data.readers.files`. One bad file never stops a collection; a source that is
missing or holds no document at all is an error, because the pipeline after it would run on nothing. The collection
is held in memory as Arrow, with each document capped (see `readers.files`).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from mainspring.data.documents import to_table
from mainspring.data.readers.files import read_files
from mainspring.spec import Document, Progress, Skipped, SpecError, silent
from mainspring.spec.plugin import load

BUILTIN = {"python": "mainspring.data.readers.python_docs:PythonDocs"}


class Reader(Protocol):
    """What a reader plugin is: a class whose instances read everything after `scheme:`."""

    api: int

    def read(self, rest: str, *, progress: Progress) -> Iterator[Document | Skipped]:
        """Documents and skipped pieces, in an order that depends on the source alone."""
        ...


def read(source: str, *, progress: Progress = silent) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Every document of `source` as rows of `documents.SCHEMA`, in a fixed order, and what was skipped.

    Raises `NotFound` for a source that does not exist and `SpecError` for one without a readable document.
    """
    if not source.strip():
        raise SpecError("the source is empty", hint="a folder, a glob, or python:docs; . is this folder")
    skipped: list[Skipped] = []

    def documents() -> Iterator[Document]:
        for item in _open(source, progress):
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                yield item

    table = to_table(documents())
    if not table.num_rows:
        why = f": {skipped[0].source}: {skipped[0].reason}" if skipped else ""
        raise SpecError(
            f"{source!r} holds no readable document ({len(skipped)} skipped{why})",
            hint="readable: Markdown, text, HTML, PDF and office files, or python:docs",
        )
    progress(1.0, f"read {table.num_rows} documents from {source}, skipped {len(skipped)}")
    return table, tuple(skipped)


def _open(source: str, progress: Progress) -> Iterator[Document | Skipped]:
    scheme = re.match(r"([a-z][a-z0-9_]+):(?!//)", source)  # two letters or more: `c:` is a drive
    if scheme is None or Path(source).exists():
        return read_files(source, progress=progress)
    reader: Reader = load("reader", scheme[1], BUILTIN)()
    return reader.read(source[scheme.end() :], progress=progress)
