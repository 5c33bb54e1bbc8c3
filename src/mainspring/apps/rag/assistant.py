"""Ask a published assistant, and tell it what was wrong.

Every answer rests on numbered passages. A generator writes it only when the application's gate was passed, and only
what it wrote from the passages is kept: an answer whose words are not in them is replaced by the passages
themselves, and `note` says so. Each answer is recorded as a trace that names the exact index, snapshot, chunks and
prompt; feedback is recorded against the trace. Both are events whose subject is the application's name.
"""

import re
import time
import uuid
from collections.abc import Callable, Sequence

from mainspring.apps.rag.extract import Quote, answers, best_quotes, worded
from mainspring.apps.rag.generate import Voice
from mainspring.apps.rag.index import Hit, Index
from mainspring.apps.rag.prose import plain
from mainspring.apps.rag.terms import content_terms
from mainspring.data.feedback import feedback_rows
from mainspring.evaluate.sentences import sentences
from mainspring.spec import (
    Answer,
    AnswerMode,
    Artifact,
    Citation,
    DoesNotFit,
    Feedback,
    GateDecision,
    NotFound,
    SpecError,
    Thumb,
    Trace,
    spec,
)
from mainspring.store import Store
from mainspring.store.parse import read_json, to_dict, to_json

Generate = Callable[[str], str]
"""Continues a prompt. It may be slow and may raise `MainspringError`; it is never called twice for one question."""

LONGEST_QUESTION = 8000
LONGEST_REMARK = 100_000
GROUNDED = 0.7
"""Least share of a generated answer's information that the passages must hold."""
NOTHING = "I found nothing about this in the documents."
_MARKER = re.compile(r"\s*\[\d+\]")
_PASSAGES = 8
_PROMPT_PASSAGE = 300
_PROMPT_QUESTION = 400
_PROMPT = """Answer the question in one or two sentences, using only the passages.

{passages}

Question: {question}
Answer:"""


@spec
class RagApp:
    """What `app.json` of an application holds: its parts by reference, and whether its model may write answers."""

    name: str
    index: str
    model: str
    gate: GateDecision
    format: int = 1


def publish_app(
    store: Store, *, name: str, index_ref: str, model_ref: str = "", gate: GateDecision, run: str = ""
) -> Artifact:
    """Publish `app:name`, which answers from `index_ref`, with the words of `model_ref` if `gate` was passed."""
    index = store.resolve(index_ref)
    model = store.resolve(model_ref).ref if model_ref else ""
    app = RagApp(name=name, index=index.ref, model=model, gate=gate)
    with store.scratch() as folder:
        (folder / "app.json").write_text(to_json(app), encoding="utf-8")
        inputs = tuple(ref for ref in (index.ref, model) if ref)
        meta = {"type": "rag", "index": index.ref, "model": model, "gate": gate.verdict}
        return store.publish("app", name, folder / "app.json", meta=meta, run=run, inputs=inputs)


class Rag:
    """One application, opened; threads may share it. Close it when done.

    `generate` speaks for the application's model; by default the model itself, if it passed its gate.
    """

    def __init__(self, store: Store, app_ref: str, generate: Generate | None = None) -> None:
        artifact = store.resolve(app_ref)
        if artifact.kind != "app":
            raise SpecError(f"{artifact.ref} is of kind {artifact.kind}, not an app")
        self.ref = artifact.ref
        self.app = read_json((store.fetch(artifact) / "app.json").read_text(encoding="utf-8"), RagApp, artifact.ref)
        self.index = Index.open(store, self.app.index)
        self._store = store
        self._generate = generate
        self._voice: Voice | None = None
        if generate is None and self.app.model and self.app.gate.passed:
            self._voice = Voice(store.fetch(self.app.model), self.app.name)
            self._generate = self._voice

    def ask(self, question: str) -> Answer:
        """A cited answer to `question`, recorded. `SpecError` for an empty question, `DoesNotFit` for a huge one."""
        started = time.monotonic()
        asked = " ".join(question.split())
        if not asked:
            raise SpecError("the question is empty")
        if len(question) > LONGEST_QUESTION:
            raise DoesNotFit(
                f"the question has {len(question)} characters, at most {LONGEST_QUESTION} are read",
                hint="ask about one thing at a time",
            )
        hits = self.index.search(asked, _PASSAGES)
        trace_id = uuid.uuid4().hex
        if not answers(self.index, asked, hits):
            answer = Answer(
                trace=trace_id,
                question=asked,
                text=NOTHING,
                citations=(),
                mode="extracted",
                note="no passage holds enough of what the question asks",
            )
            self._record(answer, hits, "", started)
            return answer
        quotes = best_quotes(self.index, asked, hits)
        answer, prompt = self._worded(trace_id, asked, quotes)
        self._record(answer, hits, prompt, started)
        return answer

    def feedback(self, days: float = 7.0) -> tuple[Feedback, ...]:
        """What people said about this assistant's answers in the last `days`, for `dataset(...).correct(...)`."""
        return feedback_rows(self._store, self.app.name, days=days)

    def rate(self, trace: str, *, thumb: Thumb, correction: str = "", comment: str = "", author: str = "") -> Feedback:
        """Record what somebody thinks of the answer `trace`. `NotFound` for a trace this application never gave."""
        if thumb not in ("up", "down"):
            raise SpecError(f"thumb is {thumb!r}", hint='give "up" or "down"')
        for what, text in (("correction", correction), ("comment", comment)):
            if len(text) > LONGEST_REMARK:
                raise DoesNotFit(f"the {what} has {len(text)} characters, at most {LONGEST_REMARK} are kept")
        found = self.trace(trace)
        row = Feedback(
            trace=found.id,
            thumb=thumb,
            correction=correction,
            comment=comment,
            chunks=found.chunks,
            snapshot=found.snapshot,
            author=author,
            time_s=time.time(),
        )
        self._store.emit("feedback", self.app.name, to_dict(row))
        return row

    def trace(self, trace: str) -> Trace:
        """What was recorded for one answer. `NotFound` when this application gave no such answer."""
        known = self._store.recall(_trace_key(self.app.name, trace))
        if known is None:
            raise NotFound(
                f"{self.app.name} has no answer with trace {trace[:64]!r}", hint="copy the trace printed with an answer"
            )
        (event,) = self._store.events(after=known["seq"] - 1, kind="trace", subject=self.app.name, limit=1)
        return read_json(event.data_json, Trace)

    def close(self) -> None:
        """Free the model, if one was loaded."""
        if self._voice is not None:
            self._voice.close()

    def _worded(self, trace: str, question: str, quotes: Sequence[Quote]) -> tuple[Answer, str]:
        """The answer in the generator's words where it may and can speak, else in the documents' own; the prompt."""
        citations = tuple(_citation(n, quote) for n, quote in enumerate(quotes, start=1))
        prompt, written = "", ""
        if not self.app.gate.passed:
            failed = "; ".join(reason for reason in self.app.gate.reasons if not reason.endswith(": met"))
            note = f"extracted from the documents: no model passed the gate ({failed})"
        elif self._generate is None:
            note = "extracted from the documents: no language model is attached"
        else:
            prompt = _prompt(question, quotes)
            written, note = self._write(self._generate, prompt, quotes)
        mode: AnswerMode = "generated" if written else "extracted"
        text = _with_markers(self.index, written, quotes) if written else worded(quotes)
        answer = Answer(trace=trace, question=question, text=text, citations=citations, mode=mode, note=note)
        return answer, prompt

    def _write(self, generate: Generate, prompt: str, quotes: Sequence[Quote]) -> tuple[str, str]:
        """What the model wrote, or nothing and why that was not used."""
        try:
            written = _MARKER.sub("", generate(prompt)).strip()
        except DoesNotFit as error:
            return "", f"extracted from the documents: {error}"
        support = grounding(self.index, written, quotes)
        if support >= GROUNDED:
            return written, ""
        return "", (
            f"extracted from the documents: the passages hold {support:.0%} of what the model wrote, "
            f"asked at least {GROUNDED:.0%}"
        )

    def _record(self, answer: Answer, hits: Sequence[Hit], prompt: str, started: float) -> None:
        trace = Trace(
            id=answer.trace,
            app=self.ref,
            question=answer.question,
            answer=answer.text,
            mode=answer.mode,
            index=self.index.ref,
            snapshot=self.index.manifest.snapshot,
            model=self.app.model if prompt else "",
            chunks=tuple(hit.chunk.id for hit in hits),
            scores=tuple(hit.score for hit in hits),
            prompt=prompt,
            seconds=time.monotonic() - started,
        )
        event = self._store.emit("trace", self.app.name, to_dict(trace))
        self._store.remember(_trace_key(self.app.name, answer.trace), {"seq": event.seq})


def grounding(index: Index, written: str, quotes: Sequence[Quote]) -> float:
    """The share of what `written` says (by idf) that the passages say too; 0 for no words or endless repetition."""
    said = content_terms(written)
    words = written.lower().split()
    if not said or len(set(words)) < len(words) / 4:
        return 0.0
    passages = " ".join(f"{' '.join(quote.hit.chunk.path)} {quote.hit.chunk.text}" for quote in quotes)
    return index.coverage(said, content_terms(passages))


def _with_markers(index: Index, written: str, quotes: Sequence[Quote]) -> str:
    """`written` with each sentence marked by the passage that supports it most; a model repeats what it has read."""
    marked = []
    for sentence in sentences(written):
        said = content_terms(sentence)
        support = [index.coverage(said, content_terms(quote.hit.chunk.text)) for quote in quotes]
        marked.append(f"{plain(sentence)} [{support.index(max(support)) + 1}]")
    return " ".join(marked)


def _prompt(question: str, quotes: Sequence[Quote]) -> str:
    """The passages around the quotes, then the question: short enough for a model with a small context."""
    passages = [f"[{n}] {_around(quote)}" for n, quote in enumerate(quotes, start=1)]
    return _PROMPT.format(passages="\n\n".join(passages), question=question[:_PROMPT_QUESTION])


def _around(quote: Quote) -> str:
    """The quote with what follows it in its passage, up to `_PROMPT_PASSAGE` characters."""
    text = quote.hit.chunk.text
    start = text.find(quote.text)
    return text[start : start + _PROMPT_PASSAGE]


def _citation(marker: int, quote: Quote) -> Citation:
    chunk = quote.hit.chunk
    return Citation(
        marker=marker,
        chunk=chunk.id,
        source=chunk.source,
        path=chunk.path,
        quote=quote.text,
        score=quote.score,
    )


def _trace_key(app: str, trace: str) -> str:
    return f"rag/{app}/trace/{trace[:64]}"
