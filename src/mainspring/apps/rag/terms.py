"""The words of a text as search sees them: the same for documents and questions, in any script.

Identifiers count whole and in parts (`os.path.join` is also `os`, `path`, `join`; `getItem` is `get`, `item`).
Scripts without spaces (Chinese, Japanese, Thai, ...) count as overlapping pairs of characters, which finds words
without a dictionary (Nie et al. 2000). What is left of a question is words alone, so no operator or quote in it can
upset a query parser.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

_CJK = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUN = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+(?:\.[^\W\d{_CJK}][^\W{_CJK}]*)*")
_UNSPACED = re.compile(rf"[{_CJK}]")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\WA-Z_\d]+|\d+|[^\W_]")
LONGEST = 40  # of one term, in characters: what the full-text index keeps

_STOP_WORDS = (
    "a about all also an and any are as at be been being between but by can could did do does doing for from get "
    "give had has have how i if in into is it its like make me more most my need no not of on one or other our "
    "please show should so some such tell than that the their them then there these they this those to too use "
    "used using very want was we were what when where which while who whom whose why will with would you your"
)
STOP = frozenset(_STOP_WORDS.split())
_ARTICLES = frozenset(("a", "an", "the"))


def terms(text: str) -> list[str]:
    """The terms of `text` in order, lower case; a whole identifier comes before its parts."""
    found: list[str] = []
    for match in _RUN.finditer(text):
        run = match[0]
        if _UNSPACED.match(run):
            found += [run[at : at + 2] for at in range(len(run) - 1)] or [run]
            continue
        parts = [part.lower() for part in _PART.findall(run)]
        if len(parts) != 1:
            found.append(run.lower()[:LONGEST])
        found += [part[:LONGEST] for part in parts]
    return found


@lru_cache(1 << 17)
def stem(term: str) -> str:
    """`term` without the commonest English endings; never shorter than three letters."""
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if term.endswith(ending) and len(term) - len(ending) >= 3 and not term.endswith("ss"):
            return (term[: -len(ending)] + replacement).rstrip("e")
    return term.rstrip("e") if len(term) > 3 else term


def content_terms(text: str) -> list[str]:
    """Distinct stemmed terms of `text` without stop words, in order of appearance."""
    return list(dict.fromkeys(stem(term) for term in terms(text) if term not in STOP))


def phrases(headings: Iterable[str]) -> list[str]:
    """Neighbouring words of which one is a stop word, as one term each.

    A section called `The "with" statement` is about a word that says nothing elsewhere; `with_statement` finds it.
    The parts of an identifier are no neighbours.
    """
    found: list[str] = []
    for heading in headings:
        runs = [match[0] for match in _RUN.finditer(heading)]
        words = [run.lower() if len(_PART.findall(run)) == 1 else "" for run in runs if run.lower() not in _ARTICLES]
        pairs = [(one, two) for one, two in pairwise(words) if one and two]
        found += [f"{stem(one)}_{stem(two)}" for one, two in pairs if (one in STOP) != (two in STOP)]
    return list(dict.fromkeys(found))
