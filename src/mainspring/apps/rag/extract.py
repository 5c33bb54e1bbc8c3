"""Answer from the passages themselves: the sentences that say most of what was asked, with where they stand.

A sentence scores by how much of the question's information it (with its heading) contains, how close it is in
meaning, where its passage ranked, and whether it opens its document, since that is where documentation says what a
thing is. The weights were set once on 45 hand-written questions about Python's documentation and are not tuned.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mainspring.apps.rag.index import Hit, Index, passage
from mainspring.apps.rag.terms import content_terms
from mainspring.evaluate.sentences import sentence_spans

RELEVANT = 0.45
"""Least share of a question's information that one passage must hold to be an answer: of 45 questions about Python's
documentation 42 pass, of 20 about other things 3."""
CLOSE = 0.5
"""Or this cosine similarity, where the embedder is a trained model; LSA's cosine tells nothing about single words."""
QUOTES = 3
LONGEST_QUOTE = 400
_HITS = 6
_WEIGHTS = {"coverage": 0.55, "similarity": 0.25, "rank": 0.15, "opening": 0.15}
_KEPT = 0.75  # of the best score: a quote below it adds noise
_SIGNATURE = re.compile(r"(?:^|\n)[ \t]{2,}([A-Za-z_][\w.]*\([^\n]{0,160}\)[^\n]{0,40})(?=\n|$)")
_NOT_PROSE = re.compile(r"[ \t]*(?:#|>>>|```|~~~|\||[=*~^-]{3,})")


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence of a hit, exactly as its document has it, and its score."""

    hit: Hit
    text: str
    score: float


def relevance(index: Index, question: str, hits: Sequence[Hit]) -> float:
    """The largest share of the question's information that one of the passages holds, from 0 to 1."""
    asked = content_terms(question)
    return max((index.coverage(asked, content_terms(passage(hit.chunk))) for hit in hits), default=0.0)


def answers(index: Index, question: str, hits: Sequence[Hit]) -> bool:
    """Whether any passage is about what was asked; if not, the honest answer is that nothing was found."""
    if relevance(index, question, hits) >= RELEVANT:
        return True
    if not hits or index.manifest.embedder == "lsa":
        return False
    asked, *found = index.encode([question, *(passage(hit.chunk) for hit in hits)])
    return max(float(asked @ vector) for vector in found) >= CLOSE


def best_quotes(index: Index, question: str, hits: Sequence[Hit]) -> list[Quote]:
    """At most `QUOTES` sentences, each of another document, best first; never empty for at least one hit."""
    candidates = [
        (rank, hit, text, opening)
        for rank, hit in enumerate(hits[:_HITS])
        for text, opening in _sentences(hit.chunk.text, opens=hit.chunk.start == 0)
    ]
    asked = content_terms(question)
    vectors = index.encode([question, *(f"{_place(hit)} {text}" for _, hit, text, _ in candidates)])
    similar = np.clip(vectors[1:] @ vectors[0], 0, 1)
    quotes = []
    for (rank, hit, text, opening), close in zip(candidates, similar, strict=True):
        score = (
            _WEIGHTS["coverage"] * index.coverage(asked, content_terms(f"{_place(hit)} {text}"))
            + _WEIGHTS["similarity"] * float(close)
            + _WEIGHTS["rank"] / (1 + rank)
            + _WEIGHTS["opening"] * opening
        )
        quotes.append(Quote(hit, text, score))
    quotes.sort(key=lambda quote: (-quote.score, quote.hit.chunk.id, quote.text))
    best: dict[str, Quote] = {}
    for quote in quotes:
        if quote.score >= _KEPT * quotes[0].score:
            best.setdefault(quote.hit.chunk.document, quote)
    return list(best.values())[:QUOTES]


def worded(quotes: Sequence[Quote]) -> str:
    """The quotes as an answer: one paragraph each, led by the signature or the heading, closed by its marker."""
    return "\n\n".join(f"{_lead(quote)}{_flowing(quote.text)} [{n}]" for n, quote in enumerate(quotes, start=1))


def _sentences(text: str, *, opens: bool) -> list[tuple[str, bool]]:
    """Prose sentences of a passage with whether each is the first of its document; all of it when there is none."""
    found = [text[start:end] for start, end in sentence_spans(text)]
    prose = [sentence for sentence in found if _is_prose(sentence)] or [text]
    return [(sentence[:LONGEST_QUOTE].rstrip(), opens and at == 0) for at, sentence in enumerate(prose[:40])]


def _is_prose(sentence: str) -> bool:
    if _NOT_PROSE.match(sentence) or _SIGNATURE.fullmatch(f"  {sentence}"):
        return False
    letters = sum(char.isalpha() or char.isspace() for char in sentence)
    return letters >= 0.6 * len(sentence) and len(content_terms(sentence)) >= 2


def _place(hit: Hit) -> str:
    return " ".join(hit.chunk.path) or hit.chunk.source


def _lead(quote: Quote) -> str:
    chunk = quote.hit.chunk
    signature = _SIGNATURE.search(chunk.text[:1000]) if chunk.start == 0 else None
    owner, _, called = chunk.source.rpartition(".")
    if signature and signature[1].partition("(")[0] == called:
        return f"`{owner}{'.' if owner else ''}{signature[1].strip()}`: "
    return f"**{' › '.join(chunk.path[-2:]) or chunk.source}**: "


def _flowing(text: str) -> str:
    return " ".join(text.split())
