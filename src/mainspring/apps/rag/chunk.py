"""Cut a document where its structure allows, and remember exactly where.

Blocks (headings, fenced code, lists, tables, paragraphs) are found line by line as in CommonMark, then packed
into chunks of about `target` characters; a section starts a new chunk unless the one before is a stub. A fence or
a list is never cut unless it alone is longer than `HARD_LIMIT` targets, which bounds memory on pathological input.
Long paragraphs are cut between sentences, and prose that goes on repeats the last sentence. Sizes in characters.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from mainspring.evaluate.sentences import sentence_spans
from mainspring.spec import Chunk, Document, SpecError

TARGET = 1000
HARD_LIMIT = 8
PLAIN_FORMATS = frozenset({"text", "txt", "plain", "log"})

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{3,}|\*{3,}|~{3,}|\^{3,})[ \t]*$")  # setext, and what reStructuredText adds
_LEVELS = {"=": 1, "*": 1, "-": 2, "~": 3, "^": 4}
_ITEM = re.compile(r"[ \t]*(?:[-*+\u2022]|\d{1,9}[.)])[ \t]+\S")
_TABLE = re.compile(r"[ \t]*\|")
_WIDEST_LINE = 500  # a longer line is never a heading, and is not worth a regular expression

_Kind = Literal["heading", "code", "list", "table", "prose"]


@dataclass(frozen=True, slots=True)
class _Block:
    start: int
    end: int
    kind: _Kind
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    text: str
    blank: bool


def chunk_document(document: Document, *, target: int = TARGET) -> tuple[Chunk, ...]:
    """The chunks of `document`, in order; `document.text[chunk.start:chunk.end] == chunk.text` for each.

    Every character that is not white space is in at least one chunk. `path` is the headings above, after the
    title where the first heading does not hold it.
    """
    if target < 50:
        raise SpecError(f"a chunk target of {target} characters is below 50", hint="try 1000")
    text = document.text
    markdown = document.format.lower() not in PLAIN_FORMATS
    blocks = list(_blocks(_lines(text), markdown=markdown))
    cuts = (piece for block in blocks for piece in _pieces(text, block, target))
    pieces = [piece for piece in cuts if not text[piece.start : piece.end].isspace()]
    chunks = []
    for group in _pack(text, pieces, target):
        start, end = group[0].start, group[-1].end
        body = text[start:end]
        start += len(body) - len(body.lstrip())
        body = body.strip()
        if not body:
            continue
        headings = _path(group)
        if document.title and not (headings and document.title in headings[0]):
            headings = (document.title, *headings)
        chunks.append(
            Chunk(
                id=f"{document.id[:16]}:{start}-{start + len(body)}",
                document=document.id,
                source=document.source,
                path=headings,
                text=body,
                start=start,
                end=start + len(body),
            )
        )
    return tuple(chunks)


def _lines(text: str) -> list[_Line]:
    lines, start = [], 0
    while start < len(text):
        newline = text.find("\n", start)
        end = len(text) if newline < 0 else newline + 1
        head = text[start : min(end, start + _WIDEST_LINE)].rstrip("\r\n")
        lines.append(_Line(start, end, head, text[start:end].isspace()))
        start = end
    return lines


def _blocks(lines: list[_Line], *, markdown: bool) -> Iterator[_Block]:
    """Group lines to blocks; `path` holds the headings in force, a heading being part of its own section."""
    headings: list[tuple[int, str]] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.blank:
            at += 1
            continue
        level, title, size = _heading(lines, at) if markdown else (0, "", 0)
        if level:
            headings = [(above, name) for above, name in headings if above < level] + [(level, title)]
            kind: _Kind = "heading"
            stop = at + size
        else:
            kind, stop = _extent(lines, at, markdown=markdown)
        yield _Block(line.start, lines[stop - 1].end, kind, tuple(name for _, name in headings))
        at = stop


def _heading(lines: list[_Line], at: int) -> tuple[int, str, int]:
    """`(level, title, lines used)` of the heading at `at`; level 0 when there is none."""
    text = lines[at].text
    atx = _HEADING.match(text)
    if atx:
        return len(atx[1]), atx[2].strip(), 1
    under = _UNDERLINE.match(lines[at + 1].text) if at + 1 < len(lines) else None
    plain = not (_ITEM.match(text) or _TABLE.match(text) or _FENCE.match(text) or _UNDERLINE.match(text))
    if under and plain and len(text) < 200 and (under[1][0] in "=-" or len(under[1]) >= len(text.strip())):
        return _LEVELS[under[1][0]], text.strip(), 2
    return 0, "", 0


def _extent(lines: list[_Line], at: int, *, markdown: bool) -> tuple[_Kind, int]:
    """The kind of the block that starts at line `at`, and the line after its last."""
    fence = _FENCE.match(lines[at].text)
    if fence:
        return "code", _after_fence(lines, at, fence[1])
    if lines[at].text.lstrip().startswith(">>>"):
        return "code", _until(lines, at, lambda line: line.blank)
    if _ITEM.match(lines[at].text):
        return "list", _after_list(lines, at)
    if _TABLE.match(lines[at].text):
        return "table", _until(lines, at, lambda line: not _TABLE.match(line.text))
    stop = _until(lines, at, lambda line: line.blank or bool(_FENCE.match(line.text) or _ITEM.match(line.text)))
    if markdown:
        headed = (n for n in range(at + 1, stop) if _heading(lines, n)[0])
        stop = next(headed, stop)
    return "prose", stop


def _until(lines: list[_Line], at: int, ends: Callable[[_Line], bool]) -> int:
    stop = at + 1
    while stop < len(lines) and not ends(lines[stop]):
        stop += 1
    return stop


def _after_fence(lines: list[_Line], at: int, fence: str) -> int:
    """The line after the closing fence; an unclosed fence runs to the end, as CommonMark has it."""
    closing = re.compile(rf" {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$")
    return min(_until(lines, at, lambda line: bool(closing.match(line.text))) + 1, len(lines))


def _after_list(lines: list[_Line], at: int) -> int:
    """The line after the list, which ends at a blank line before a line neither indented nor an item."""
    stop = at + 1
    while stop < len(lines):
        line = lines[stop]
        if line.blank:
            after = stop + 1
            while after < len(lines) and lines[after].blank:
                after += 1
            if after == len(lines) or not (lines[after].text[0].isspace() or _ITEM.match(lines[after].text)):
                return stop
            stop = after
        elif not line.text[0].isspace() and _heading(lines, stop)[0]:
            return stop
        elif not line.text[0].isspace() and (fence := _FENCE.match(line.text)):
            stop = _after_fence(lines, stop, fence[1])
        else:
            stop += 1
    return stop


def _pieces(text: str, block: _Block, target: int) -> Iterator[_Block]:
    """The block itself, or its cuts when it is prose above the target or anything above the hard limit."""
    limit = target if block.kind == "prose" else HARD_LIMIT * target
    if block.end - block.start <= limit:
        yield block
        return
    spans = sentence_spans(text, block.start, block.end) if block.kind == "prose" else [(block.start, block.end)]
    for start, end in spans:
        at = start
        while end - at > limit:
            cut = _cut(text, at, at + limit)
            yield _Block(at, cut, block.kind, block.path)
            at = cut
        yield _Block(at, end, block.kind, block.path)


def _cut(text: str, start: int, limit: int) -> int:
    """The last line end before `limit`, else the last space, else `limit`; always in the second half."""
    middle = (start + limit) // 2
    for separator in ("\n", " "):
        at = text.rfind(separator, middle, limit)
        if at >= 0:
            return at + 1
    return limit


def _pack(text: str, pieces: list[_Block], target: int) -> Iterator[list[_Block]]:
    """Join pieces to groups of about `target`; a heading starts a new group unless the last one is a stub."""
    current: list[_Block] = []
    for piece in pieces:
        if current and piece.kind == "heading" and current[-1].end - current[0].start >= target // 4:
            yield current
            current = []
        elif current and piece.end - current[0].start > target:
            headings = _trailing_headings(current)
            kept = current[: len(current) - len(headings)]
            if kept:
                yield kept
                current = headings or _overlap(text, kept, piece, target)
            if current and piece.end - current[0].start > (HARD_LIMIT + 1) * target:
                yield current  # headings too far from what follows them
                current = []
        current.append(piece)
    if current:
        yield current


def _trailing_headings(blocks: list[_Block]) -> list[_Block]:
    body = [n for n, block in enumerate(blocks) if block.kind != "heading"]
    return blocks[body[-1] + 1 if body else 0 :]


def _overlap(text: str, kept: list[_Block], piece: _Block, target: int) -> list[_Block]:
    """The last sentence before the cut, when prose goes on after it and it is short enough to repeat."""
    last = kept[-1]
    if last.kind != "prose" or piece.kind != "prose" or last.path != piece.path:
        return []
    start, end = list(sentence_spans(text, last.start, last.end))[-1]
    leads = not text[kept[0].start : start].strip()  # the whole of what was kept
    fits = end - start <= target // 4 and piece.end - start <= 2 * target and not leads
    return [_Block(start, end, "prose", last.path)] if fits else []


def _path(blocks: list[_Block]) -> tuple[str, ...]:
    """The headings all of the group's text stands under."""
    paths = [block.path for block in blocks if block.kind != "heading"] or [blocks[-1].path]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return tuple(names[0] for names in shared)
