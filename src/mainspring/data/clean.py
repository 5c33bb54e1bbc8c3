"""Normalise documents and drop those not worth learning from, one named rule at a time, counting each.

`REPAIRS` change a text; `FILTERS` drop a document, the first that objects being the one that is charged, so that
`read = kept + sum(dropped)`. Every filter is a row with one limit, which `rules={"few_letters": 100}` overrides and
`rules={"long_line": None}` switches off. The repetition limits are those of Rae et al. 2021 (Gopher), table A1; they
count characters, so they need no list of words and no language. Texts in scripts without spaces have few "words", and
the n-gram rules leave texts of under `MIN_WORDS` alone.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from mainspring.data.documents import SCHEMA, make_document, to_documents, to_table
from mainspring.spec import Document, Progress, RuleCount, SpecError, silent

EXAMPLES = 5
MIN_WORDS = 100
Rules = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Repair:
    """A named change of text that keeps its meaning."""

    name: str
    apply: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Filter:
    """A named reason to drop a document: `judge(document, limit)` says what is wrong, or nothing.

    A `limit` of None means that the rule is off unless a caller gives it one.
    """

    name: str
    limit: float | None
    why: str
    judge: Callable[[Document, float], str]


# C0 and C1 control characters other than tab and newline; zero-width characters, soft hyphens and misplaced marks.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u2028\u2029\u2060\ufeff]")
_BOILERPLATE = re.compile(
    r"^\W*(skip to (main )?content|edit (this page|on github)|was this (page|article) helpful\W*|"
    r"back to top|previous( page)?|next( page)?|(share|follow) (this|us) on \w+|sign (in|up)|log ?in|"
    r"(we use|this (web)?site uses) cookies\b.*|accept (all )?cookies|all rights reserved\W*|"
    r"(copyright )?(\(c\)|\u00a9)\s*(copyright )?[\d, -]*.{0,60}|page \d+ of \d+)\W*$",
    re.IGNORECASE,
)


def _whitespace(text: str) -> str:
    text = re.sub(r"[ \t\u00a0]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def _boilerplate(text: str) -> str:
    """Drop whole lines that are navigation; a fenced or indented line is content whatever it says."""
    kept, fenced = [], False
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        if fenced or len(line.rstrip()) > 120 or line.startswith(("    ", "\t", "#")) or not _BOILERPLATE.match(line):
            kept.append(line)
    return "\n".join(kept)


REPAIRS = (
    Repair("control_characters", lambda text: _CONTROL.sub("", text)),  # first: it may part a letter and its accent
    Repair("unicode_nfc", lambda text: unicodedata.normalize("NFC", text)),
    Repair("boilerplate_lines", _boilerplate),
    Repair("whitespace", _whitespace),
)


def _over(share: float, limit: float, what: str) -> str:
    return f"{what} {share:.0%}, limit {limit:.0%}" if share > limit else ""


def _few_letters(document: Document, limit: float) -> str:
    """Counted in UTF-8 bytes: a Han character says as much as three Latin letters, and has three bytes."""
    letters = len("".join(filter(str.isalpha, document.text[:10_000])).encode())
    return f"{letters} bytes of letters, limit {limit:.0f}" if letters < limit else ""


def _damaged(document: Document, limit: float) -> str:
    return _over(document.text.count("\ufffd") / len(document.text), limit, "undecodable characters")


def _long_line(document: Document, limit: float) -> str:
    longest = max(map(len, document.text.split("\n")))
    return f"a line of {longest} characters, limit {limit:.0f}" if longest > limit else ""


def _symbols(document: Document, limit: float) -> str:
    visible = "".join(document.text.split())
    symbols = sum(1 for character in visible if not character.isalnum())
    return _over(symbols / max(1, len(visible)), limit, "symbols")


def _repeated_lines(document: Document, limit: float) -> str:
    lines = [line.strip() for line in document.text.split("\n") if any(map(str.isalnum, line))]
    return _over(_repeated_characters(lines), limit, "characters in repeated lines")


def _repeated_paragraphs(document: Document, limit: float) -> str:
    paragraphs = [part.strip() for part in document.text.split("\n\n") if part.strip()]
    return _over(_repeated_characters(paragraphs), limit, "characters in repeated paragraphs")


def _repeated_characters(pieces: list[str]) -> float:
    """Share of characters in pieces that occurred before."""
    repeated = sum(len(piece) * (count - 1) for piece, count in Counter(pieces).items())
    return repeated / max(1, sum(map(len, pieces)))


def _words(text: str) -> list[str]:
    """Pieces between spaces, without the lines of drawn tables."""
    return [word for word in text.split() if any(map(str.isalnum, word))]


def _top_ngram(document: Document, limit: float) -> str:
    """The most frequent 2-, 3- or 4-gram; Gopher's limits for these are in the ratio 20 : 18 : 16."""
    words = _words(document.text)
    if len(words) < MIN_WORDS:
        return ""
    for n, scale in ((2, 1.0), (3, 0.9), (4, 0.8)):
        ngram, count = Counter(zip(*(words[i:] for i in range(n)), strict=False)).most_common(1)[0]
        share = count * sum(map(len, ngram)) / sum(map(len, words))
        if count > 2 and share > limit * scale:
            return _over(share, limit * scale, f"the {n}-gram {' '.join(ngram)[:60]!r} is")
    return ""


def _duplicate_ngrams(document: Document, limit: float) -> str:
    """Characters covered by 8-grams that occurred before in the document."""
    words, n = _words(document.text), 8
    if len(words) < MIN_WORDS:
        return ""
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for start in range(len(words) - n + 1):
        ngram = tuple(words[start : start + n])
        if ngram in seen:
            covered.update(range(start, start + n))
        seen.add(ngram)
    share = sum(len(words[i]) for i in covered) / sum(map(len, words))
    return _over(share, limit, "characters in repeated 8-grams")


def _deprecated(document: Document, limit: float) -> str:
    head = document.text[: int(limit)].lower()
    return "says it is deprecated" if "deprecated" in head else ""


def _private(document: Document, limit: float) -> str:
    parts = re.split(r"[./:]", document.source)
    hidden = sum(1 for part in parts if part.startswith("_"))
    return f"{hidden} private parts in its name" if hidden >= limit else ""


FILTERS = (
    Filter("few_letters", 20, "too short to say anything", _few_letters),
    Filter("damaged", 0.01, "decoded with the wrong encoding, or from a broken file", _damaged),
    Filter("long_line", 20_000, "data, minified code or a lost line break", _long_line),
    Filter("symbols", 0.6, "more punctuation than words: tables of numbers, drawings, dumps", _symbols),
    Filter("repeated_lines", 0.3, "the same lines again and again", _repeated_lines),
    Filter("repeated_paragraphs", 0.3, "the same paragraphs again and again", _repeated_paragraphs),
    Filter("top_ngram", 0.2, "one phrase fills the text", _top_ngram),
    Filter("duplicate_ngrams", 0.3, "much of the text repeats itself", _duplicate_ngrams),
    Filter("deprecated", None, "announced as deprecated in its first `limit` characters", _deprecated),
    Filter("private", None, "at least `limit` parts of its name start with an underscore", _private),
)


def clean(
    table: pa.Table, *, rules: Rules | None = None, progress: Progress = silent
) -> tuple[pa.Table, tuple[RuleCount, ...]]:
    """Repaired and filtered documents in the same order, and what each rule did.

    `rules` overrides limits by name. Raises `SpecError` for a name that is no filter.
    """
    limits = _limits(rules or {})
    changed: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    kept: list[pa.Table] = []
    done = 0
    for batch in table.select(SCHEMA.names).to_batches(max_chunksize=1024):
        good: list[Document] = []
        for original in to_documents([batch]):
            document, repairs = _repair(original)
            changed.update(repairs)
            rule, detail = _verdict(document, limits)
            if not rule:
                good.append(document)
                continue
            dropped[rule] += 1
            if len(examples.setdefault(rule, [])) < EXAMPLES:
                examples[rule].append(f"{document.source}: {detail}")
        kept.append(to_table(good))
        done += batch.num_rows
        progress(done / table.num_rows, f"cleaned {done} of {table.num_rows} documents")
    counts = [RuleCount(rule=repair.name, dropped=0, changed=changed[repair.name]) for repair in REPAIRS]
    counts += [RuleCount(rule=name, dropped=dropped[name], examples=tuple(examples.get(name, ()))) for name in limits]
    return pa.concat_tables([SCHEMA.empty_table(), *kept]), tuple(counts)


def _limits(rules: Rules) -> dict[str, float]:
    """The filters that are on and their limits, in the order of `FILTERS`."""
    known = [rule.name for rule in FILTERS]
    for name, limit in rules.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise SpecError(
                f"no cleaning rule named {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(known),
            )
        if isinstance(limit, bool) or not (limit is None or isinstance(limit, int | float)):
            raise SpecError(f"rule {name!r} needs a number or None, got {limit!r}")
    chosen = {rule.name: rules.get(rule.name, rule.limit) for rule in FILTERS}
    return {name: limit for name, limit in chosen.items() if limit is not None}


def _repair(document: Document) -> tuple[Document, list[str]]:
    """The repaired document (with a new id when it changed) and the repairs that changed it."""
    text, names = document.text, []
    for repair in REPAIRS:
        repaired = repair.apply(text)
        if repaired != text:
            names.append(repair.name)
            text = repaired
    if not names:
        return document, names
    return (
        make_document(document.source, text, title=document.title, kind=document.format, parent=document.parent),
        names,
    )


def _verdict(document: Document, limits: Mapping[str, float]) -> tuple[str, str]:
    """The first filter that objects and what it found, or two empty strings."""
    for rule in FILTERS:
        if rule.name in limits and (detail := rule.judge(document, limits[rule.name])):
            return rule.name, detail
    return "", ""
