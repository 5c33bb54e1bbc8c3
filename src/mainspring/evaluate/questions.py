"""Questions whose answer is known, made from documents by rules: the same documents give the same questions.

Nothing writes these questions, so nothing invents an answer; the price is that they share words with their document,
which favours lexical search. Four forms, after what documentation is asked: what a thing does (its first sentence,
with its own name taken out), what something is called (a definition with the subject taken out), what happens in a
case (an "if" sentence), and a heading typed as a query. A document that gives none of these, as most that are not in
English, gives statements, asked as they stand. A question two documents could answer is dropped.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from mainspring.evaluate.sentences import sentences
from mainspring.spec import Document, spec

Form = Literal["purpose", "definition", "case", "heading", "statement"]

_VERBS = (
    "add append apply build call change check clear close compare compile compute concatenate construct convert "
    "copy count create decode define delete determine disable display enable encode ensure execute expand extract "
    "fetch find format generate get give handle indicate initialize insert install iterate join list load lock "
    "locate look make map match merge move normalize open parse perform pop print process produce provide push put "
    "raise read register release remove rename replace report represent reset resolve restore return reverse run "
    "save scan search select send serialize set show shut sort split start stop store strip swap test transform "
    "translate truncate try turn update use validate verify wait wrap write yield"
)
_THIRD_PERSON = {f"{verb}{'es' if verb.endswith(('sh', 'ch', 's', 'x')) else 's'}": verb for verb in _VERBS.split()}
_VERB = {verb: verb for verb in _VERBS.split()} | _THIRD_PERSON
_PLAIN_WORD = re.compile(r"[a-z]+")
_CONTENT_WORD = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]{2}|[^\W\d_]{4,}")
_SPACED = re.compile(r"[^\u3000-\u9fff]*$")
_WIDE_MARK = "\uff1f"
_MARKUP = re.compile(r"[`*]{1,3}|:\w+:(?=`)|^\s*>\s?")
_SKIPPED_LINE = re.compile(r"\s*(?:#|>>>|\.\.\.|```|~~~|\||[-=*~^]{3,}|@|\d+[.)]\s|[-*+]\s)")
_HEADING = re.compile(r"#{2,6}\s+(.+?)\s*#*$")
_DEFINITION = re.compile(r"(?P<subject>[^,;:]{2,60}?) (?:is|are) (?P<what>(?:an?|the) .+)", re.IGNORECASE)
_CASE = re.compile(r"(?:If|When) (?P<case>[^,;]{15,120}), ")
_FRAME = frozenset({"what", "happens", "where", "does", "returns", "yields", "raises", "this"})
WORDS_MIN, WORDS_MAX = 4, 32
_STATEMENTS = 3


@spec
class Question:
    """A question, the form it was made by, and the id of the document that answers it."""

    text: str
    document: str
    form: Form  # house: for whoever asks why a question reads as it does


def make_questions(documents: Sequence[Document], n: int, seed: int = 0) -> tuple[Question, ...]:
    """At most `n` questions, no two from one document until every document with a question has given one."""
    made = [question for document in documents for question in _unique_in(document)]
    askable = Counter(_key(question.text) for question in made)
    ranked: dict[str, list[Question]] = {}
    for question in sorted(made, key=lambda question: _order(seed, question)):
        if askable[_key(question.text)] == 1:
            ranked.setdefault(question.document, []).append(question)
    rounds = [(turn, question) for found in ranked.values() for turn, question in enumerate(found)]
    rounds.sort(key=lambda pair: (pair[0], _order(seed, pair[1])))
    return tuple(question for _, question in rounds[:n])


def _unique_in(document: Document) -> Iterator[Question]:
    """The questions of one document, each once; of one that gives none by its forms, some of its statements."""
    seen, formed = set(), False
    for form, text in _candidates(document):
        if form == "statement" and formed:
            return
        asked = " ".join(text.split())
        words = asked.split()
        if _key(asked) in seen or not WORDS_MIN <= _length(words) <= WORDS_MAX:
            continue
        content = set(_CONTENT_WORD.findall(asked.lower())) - _FRAME
        if len(content) >= (3 if form == "case" else 2):
            seen.add(_key(asked))
            formed = formed or form != "statement"
            yield Question(text=asked, document=document.id, form=form)
            if form == "statement" and len(seen) == _STATEMENTS:
                return


def _candidates(document: Document) -> Iterator[tuple[Form, str]]:
    lines = document.text[:20_000].splitlines()
    prose = "\n".join("" if _SKIPPED_LINE.match(line) else _MARKUP.sub("", line) for line in _outside_code(lines))
    found = [sentence for sentence in sentences(prose) if sentence[-1:] in ".!。" and sentence[:1].isalpha()]
    name = _own_name(document)
    for sentence in found[:1]:
        yield "purpose", _ask_purpose(name.sub("it", sentence).rstrip(".!。"))
    for sentence in found[1:12]:
        case, definition = _CASE.match(sentence), _DEFINITION.fullmatch(sentence)
        if case:
            yield "case", f"What happens if {name.sub('it', case['case'])}?"
        elif definition and _length(definition["subject"].split()) <= 5:
            yield "definition", f"What is {name.sub('it', definition['what']).rstrip('.!。')}?"
    for line in lines:
        heading = _HEADING.match(line)
        if heading and heading[1] != document.title:
            yield "heading", name.sub("it", _MARKUP.sub("", heading[1]))
    for sentence in found[1:40]:
        yield "statement", _ask_purpose(name.sub("it", sentence).rstrip(".!。"))


def _ask_purpose(sentence: str) -> str:
    first, _, rest = sentence.partition(" ")
    verb = _VERB.get(first.lower())
    if verb in ("return", "yield", "raise"):
        return f"What {verb}s {rest}?"
    if verb:
        return f"How do I {verb} {rest}?"
    if first in ("A", "An", "The"):
        return f"What is {first.lower()} {rest}?"
    if not first[:1].isascii():
        return f"{sentence}{'?' if _SPACED.match(first) else _WIDE_MARK}"  # a statement asks as it stands
    return f"Where does it say: {sentence}?"


def _own_name(document: Document) -> re.Pattern[str]:
    """Matches the document's name in its text; a name that is a plain word only where it is called."""
    whole = {document.title, document.source}
    names = whole | {name.rpartition(".")[2] for name in whole}
    patterns = [
        rf"{re.escape(name)}\([^)]*\)" if _PLAIN_WORD.fullmatch(name) else rf"{re.escape(name)}(?:\(\))?"
        for name in sorted(names, key=lambda name: (-len(name), name))
        if len(name) > 1
    ]
    return re.compile(rf"(?<![\w.])(?:{'|'.join(patterns) or '(?!)'})(?!\w)")


def _outside_code(lines: Sequence[str]) -> Iterator[str]:
    """Lines that are not inside a fence."""
    fence = ""
    for line in lines:
        mark = line.strip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):
            fence = "" if fence else mark
        elif not fence:
            yield line


def _length(words: Sequence[str]) -> int:
    """Words, where a run of text without spaces (Chinese) counts one per two characters."""
    return sum(len(word) // 2 if not word.isascii() and len(word) > 3 else 1 for word in words)


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _order(seed: int, question: Question) -> str:
    return hashlib.sha256(f"{seed} {question.document} {question.text}".encode()).hexdigest()
