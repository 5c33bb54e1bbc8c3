"""The Markdown of answers and passages as markup: paragraphs, lists, headings, quotes, code, emphasis and links.

Documents and models are strangers: every character of theirs is escaped, HTML in them is shown and never obeyed, and
a link leads to the web or is plain text. What CommonMark does with tables, images, nesting and underscores (which are
part of names in code) is deliberately absent. Double backticks are code, as reStructuredText has them.
"""

import re
from collections.abc import Callable, Iterable
from itertools import groupby

from mainspring.console.markup import Child, Markup, join, tag

Cite = Callable[[str], str]
"""The address of the passage behind a marker such as `[2]`."""

FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[\w+-]{0,20}[ \t]*")
HEADING = re.compile(r"#{1,6}[ \t]+(.*?)[ \t#]*")
BULLET = re.compile(r"[ \t]{0,3}[-*+][ \t]+(.*)")
NUMBERED = re.compile(r"[ \t]{0,3}\d{1,4}[.)][ \t]+(.*)")
QUOTED = re.compile(r"[ \t]{0,3}>[ \t]?(.*)")
INLINE = re.compile(
    r"(?<!`)(?P<ticks>`+)(?!`)(?P<code>[^\n]+?)(?<!`)(?P=ticks)(?!`)"
    r"|\*\*(?=\S)(?P<strong>[^*\n]+?)(?<=\S)\*\*"
    r"|(?<![\w*])\*(?=[^\s*])(?P<em>[^*\n]+?)(?<=\S)\*(?![\w*])"
    r"|\[(?P<text>[^\[\]\n]+)\]\((?P<href>https?://[^\s()<>]+)\)"
    r"|\[(?P<marker>\d{1,3})\]"
)
BLOCKS = (("heading", HEADING), ("ul", BULLET), ("ol", NUMBERED), ("quote", QUOTED))


def markdown(text: str, *, cite: Cite | None = None) -> Markup:
    """The text as blocks, its markers as links to where `cite` says."""
    blocks: list[Markup] = []
    for number, piece in enumerate(_unfenced(text)):
        if number % 2:
            blocks.append(tag("pre", tag("code", piece), class_="code"))
        else:
            blocks += _blocks(piece.split("\n"), cite)
    return join(blocks)


def inline(text: str, *, cite: Cite | None = None) -> Markup:
    """The text as it stands, its lines kept, with the Markdown inside lines as markup."""
    parts: list[Child] = []
    end = 0
    for found in INLINE.finditer(text):
        parts += [text[end : found.start()], _span(found, cite)]
        end = found.end()
    return join(parts, text[end:])


def _unfenced(text: str) -> list[str]:
    """The text outside of fences and inside of them in turn; a fence that is not closed reaches to the end."""
    pieces: list[list[str]] = [[]]
    opened = ""
    for line in text.split("\n"):
        found = FENCE.fullmatch(line)
        if found and (not opened or (found[1].startswith(opened) and line.strip() == found[1])):
            opened = "" if opened else found[1]
            pieces.append([])
        else:
            pieces[-1].append(line)
    return ["\n".join(lines) for lines in pieces]


def _blocks(lines: Iterable[str], cite: Cite | None) -> list[Markup]:
    blocks: list[Markup] = []
    for kind, group in groupby(map(_recognised, lines), key=lambda pair: pair[0]):
        bodies = [inline(body, cite=cite) for _, body in group]
        if kind in ("ul", "ol"):
            blocks.append(tag(kind, [tag("li", body) for body in bodies]))
        elif kind == "heading":
            blocks += [tag("h3", body) for body in bodies]
        elif kind == "quote":
            blocks.append(tag("blockquote", Markup("\n".join(bodies))))
        elif kind == "text":
            blocks.append(tag("p", Markup("\n".join(bodies))))
    return blocks


def _recognised(line: str) -> tuple[str, str]:
    """What kind of block a line belongs to, and what it says there."""
    for kind, pattern in BLOCKS:
        if found := pattern.fullmatch(line):
            return kind, found[1]
    return ("text", line) if line.strip() else ("gap", "")


def _span(found: re.Match[str], cite: Cite | None) -> Child:
    given = found.groupdict()
    if given["code"] is not None:
        return tag("code", given["code"].strip() or given["code"])
    if given["strong"] is not None:
        return tag("b", inline(given["strong"], cite=cite))
    if given["em"] is not None:
        return tag("em", inline(given["em"], cite=cite))
    if given["href"] is not None:
        return tag("a", given["text"], href=given["href"], rel="noopener noreferrer", target="_blank")
    if cite is None:
        return found[0]
    return tag("sup", tag("a", given["marker"], href=cite(given["marker"])))
