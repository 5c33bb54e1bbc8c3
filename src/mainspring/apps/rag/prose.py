"""What a passage says in sentences, each with the heading and the signature it stands under.

Documents are not only prose: fences, doctests, grammars, tables, signatures and literal blocks are passed over, since a
line of code torn from its block answers nobody. Lists, and entries such as `name: what it is` with hanging lines, give
a sentence each. A statement is an exact piece of its passage; `plain` is what of it may be shown as Markdown, in which
nothing that the document's author wrote can load, link, or pass for a citation of ours.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from mainspring.apps.rag.terms import content_terms
from mainspring.evaluate.sentences import sentence_spans

LONGEST = 400
"""Characters of a statement; a longer one ends after a word."""
_MOST = 40  # statements read from one passage

_FENCE = re.compile(r"[ \t]*(?:`{3}|~{3})")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*$")
_UNDERLINE = re.compile(r"[ \t]*([=\-~^*])\1{2,}[ \t]*$")
_SIGNATURE = re.compile(r"[ \t]{2,}([A-Za-z_][\w.]*\([^\n]{0,400}\)[^\n.]{0,40})$")
_ITEM = re.compile(r"[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+(?=\S)")
_ENTRY = re.compile(r"[ \t]*[\w.`'\"*]{1,40}(?:\([^)\n]{0,80}\))?[ \t]*(?::|--)[ \t]+\S")
_SKIPPED = re.compile(r"[ \t]*(?:>>>|\.\.\. |\.\. \w+::|:\w+[^:\n]*:|\|)")
_CODE = re.compile(
    r"#|[\w.]+\([^()]*\)$|[\w.\[\]]+ [-+*/]?= \S|.*::="
    r"|(?:def|class|import|from|return|print|for|if|while|with)\b.*[:)]$"
)
_LEAST_LETTERS = 0.6
_LITERAL_INDENT = 3

_ROLE = re.compile(r":[\w:]+:(?=`)")
_LITERAL = re.compile(r"(`[^`]*`)")
_LINK = re.compile(r"!?\[([^\]\[]*)\]\((?:[^()\s]|\([^()]*\))*(?:\s[^)]*)?\)")
_TAG = re.compile(r"(<[A-Za-z/!?][^<>]*>?)")
_NUMBER = re.compile(r"(?<![\w\])])\[(\d+)\]")
_INDEXED = re.compile(r"(?<!\\)((?:\b\w+|[\])])(?:\[\d+\])+)")
_ESCAPE = re.compile(r"\\+(?=[`<])")  # would undo the quoting of what follows


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence at `start` of its passage; `whole` unless it was too long to be taken to its end."""

    text: str
    start: int
    heading: str = ""
    signature: str = ""
    whole: bool = True


@dataclass(slots=True)
class _Reader:
    """Lines of a passage to spans of prose. `under` is the heading and the signature in force."""

    lines: list[tuple[int, int, str]] = field(default_factory=list)  # where it starts, its indent, the line
    under: tuple[str, str] = ("", "")
    literal: str = ""  # "fence", or "block" until the next blank line
    announced: bool = False  # the last paragraph ended in a colon, as before an example

    def read(self, text: str) -> Iterator[tuple[int, int, str, str]]:
        at = 0
        for line in text.splitlines(keepends=True):
            yield from self._take(at, line.rstrip("\r\n"))
            at += len(line)
        yield from self._flush()

    def _take(self, at: int, line: str) -> Iterator[tuple[int, int, str, str]]:
        if _FENCE.match(line):
            yield from self._flush()
            self.literal = "" if self.literal == "fence" else "fence"
        elif self.literal == "fence":
            return
        elif not line.strip():
            yield from self._flush()
            self.literal = ""
        elif heading := _HEADING.match(line):
            yield from self._flush()
            self.under = (heading[1], "")
        elif _UNDERLINE.match(line):
            self.under = (self.lines[-1][2].strip(), "") if len(self.lines) == 1 else self.under
            self.lines.clear()
        elif not self.lines and (signature := _SIGNATURE.match(line)):
            self.under = (self.under[0], signature[1].strip())
        elif self.literal or _SKIPPED.match(line) or self._is_example(line):
            yield from self._flush()
            self.literal = "block"
        else:
            yield from self._append(at, line)

    def _is_example(self, line: str) -> bool:
        return self.announced and not self.lines and _indent(line) >= _LITERAL_INDENT and not _ITEM.match(line)

    def _append(self, at: int, line: str) -> Iterator[tuple[int, int, str, str]]:
        item = _ITEM.match(line)
        if item or self._begins_entry(line):
            yield from self._flush()
        skipped = item.end() if item else 0
        self.lines.append((at + skipped, skipped or _indent(line), line[skipped:]))

    def _begins_entry(self, line: str) -> bool:
        if not self.lines:
            return False
        first = self.lines[0][1]
        hanging = any(indent > first for _, indent, _ in self.lines)
        return _indent(line) <= first and (hanging or bool(_ENTRY.match(line)))

    def _flush(self) -> Iterator[tuple[int, int, str, str]]:
        if self.lines:
            at, _, last = self.lines[-1]
            yield self.lines[0][0], at + len(last), *self.under
            self.announced = last.rstrip().endswith(":")
        self.lines.clear()


def statements(text: str) -> list[Statement]:
    """The prose sentences of a passage, in order; none when there is no prose in it."""
    found = []
    for start, end, heading, signature in _Reader().read(text):
        for begin, stop in sentence_spans(text, start, end):
            sentence = text[begin:stop]
            if _is_prose(sentence):
                kept = _shortened(sentence)
                found.append(Statement(kept, begin, heading, signature, whole=kept == sentence))
            if len(found) == _MOST:
                return found
    return found


def plain(text: str) -> str:
    """`text` on one line as inert Markdown: no roles, links, images, tags or numbers that look like citations."""
    line = _ESCAPE.sub("", _ROLE.sub("", " ".join(text.split())))
    line = re.sub("`+", "`", line)
    line = line + "`" if line.count("`") % 2 else line
    shown = "".join(part if part.startswith("`") else _inert(part) for part in _LITERAL.split(line))
    return _ESCAPE.sub("", shown).replace("``", "` `")  # two ticks in a row would open another kind of literal


def _inert(text: str) -> str:
    text = _NUMBER.sub(r"(\1)", _LINK.sub(r"\1", text)).replace("](", "] (")
    pieces = _TAG.split(text)  # every second one is a tag
    return "".join(f"`{piece}`" if at % 2 else _INDEXED.sub(r"`\1`", piece) for at, piece in enumerate(pieces))


def _is_prose(sentence: str) -> bool:
    line = " ".join(sentence.split())
    if _CODE.match(line):
        return False
    letters = sum(char.isalpha() or char.isspace() for char in line)
    return letters >= _LEAST_LETTERS * len(line) and len(content_terms(line)) >= 2


def _shortened(sentence: str) -> str:
    if len(sentence) <= LONGEST:
        return sentence
    cut = max(sentence.rfind(" ", LONGEST // 2, LONGEST), sentence.rfind("\n", LONGEST // 2, LONGEST))
    return sentence[: cut if cut > 0 else LONGEST].rstrip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
