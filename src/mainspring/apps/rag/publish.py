"""From a snapshot to a published assistant: index, retrieval report, the model's gate, application."""

from mainspring.apps.rag.assistant import publish_app
from mainspring.apps.rag.index import Index, Mode, build_index
from mainspring.data.pack import held_out_documents
from mainspring.evaluate.gate import criteria_for, decide
from mainspring.evaluate.questions import make_questions
from mainspring.evaluate.report import read_report
from mainspring.evaluate.retrieval import Search, evaluate_retrieval
from mainspring.evaluate.stage import evaluate_model, report_of, snapshot_of
from mainspring.spec import Artifact, GateDecision, Progress, silent
from mainspring.store import Store

QUESTIONS = 200
_DEPTH = 30  # chunks fetched for a question, which bounds the rank that counts


def publish(
    store: Store,
    name: str,
    *,
    corpus: str,
    engine: str = "",
    embedder: str = "lsa",
    run: str = "",
    progress: Progress = silent,
) -> Artifact:
    """Build `index:name` over `corpus`, measure it, judge `engine`, and publish `app:name`.

    Without `engine`, or when it fails its gate, the assistant answers with passages.
    """
    snapshot = snapshot_of(store, corpus)
    index = build_index(store, snapshot, embedder=embedder, name=name, run=run, progress=_part(progress, 0.0, 0.5))
    measure(store, index.ref, run=run, progress=_part(progress, 0.5, 0.8))
    gate = judge(store, engine, data=snapshot, run=run, progress=_part(progress, 0.8, 1.0))
    app = publish_app(store, name=name, index_ref=index.ref, model_ref=engine, gate=gate, run=run)
    progress(1.0, f"{app.ref}: generator gate {gate.verdict}")
    return app


def measure(store: Store, index_ref: str, *, run: str = "", progress: Progress = silent) -> Artifact | None:
    """Recall and reciprocal rank of hybrid search against its two halves, on questions from held-out documents.

    None when no question can be made from them (a corpus without prose).
    """
    index = Index.open(store, index_ref)
    questions = make_questions(list(held_out_documents(store, index.manifest.snapshot)), QUESTIONS)
    if not questions:
        return None
    arms = {mode: _search(index, mode) for mode in ("hybrid", "text", "vector")}
    _, artifact = evaluate_retrieval(
        store, index.ref, arms, questions, snapshot=index.manifest.snapshot, run=run, progress=progress
    )
    return artifact


def judge(store: Store, model_ref: str, *, data: str, run: str = "", progress: Progress = silent) -> GateDecision:
    """Whether the model may write answers, by its latest report, which is made now if there is none."""
    if not model_ref:
        return GateDecision(verdict="fail", reasons=("no model was given",))
    report = report_of(store, model_ref)
    if report is None:
        report = read_report(store, evaluate_model(store, model_ref, data=data, run=run, progress=progress))
    return decide(report, criteria_for(report))


def _search(index: Index, mode: Mode) -> Search:
    return lambda question: [hit.chunk.document for hit in index.search(question, _DEPTH, mode=mode)]


def _part(progress: Progress, start: float, end: float) -> Progress:
    return lambda fraction, message: progress(start + (end - start) * fraction, message)
