"""Where sentences begin and end, in English and in scripts that do not use spaces.

A rule splitter: a terminator followed by white space (or a CJK terminator by anything), unless an abbreviation
or an initial comes before it; a blank line always ends a sentence. Linear in the text, offsets exact.
"""

import re
from collections.abc import Iterator

_END = re.compile(r"[.!?]+[\"')\]`*]*(?=\s)|[\u3002\uff01\uff1f]+[\u201d\u2019\u300d\uff09]*|\n[ \t]*\n")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|Dr|Mr|Mrs|Ms|St|No|Fig|Sec|approx|resp)|(?:^|[\s(])[A-Z])\.$")
_LONGEST_ABBREVIATION = 10


def sentence_spans(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield `(start, end)` of each sentence of `text[start:end]`, without surrounding white space."""
    stop = len(text) if end is None else end
    begin = start
    for match in _END.finditer(text, start, stop):
        tail = text[max(begin, match.start() - _LONGEST_ABBREVIATION) : match.start() + 1]
        if text[match.start()] == "." and _ABBREVIATION.search(tail):
            continue
        yield from _trimmed(text, begin, match.end())
        begin = match.end()
    yield from _trimmed(text, begin, stop)


def sentences(text: str) -> list[str]:
    """The sentences of `text`, each on one line."""
    return [" ".join(text[start:end].split()) for start, end in sentence_spans(text)]


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end
