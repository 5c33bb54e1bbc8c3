"""Does hybrid search find the document that answers, better than either of its halves and than rank fusion of both?

The corpus is the documentation inside this Python. The questions are made by rules from the documents that are held
out of everything that is fitted: of each the sentence that says what it is, without its name. The peer is reciprocal
rank fusion of the same two lists (Cormack et al. 2009, k = 60), which is what vector databases do by default; ours
joins the scores with a weight that was chosen on questions from other documents when the index was built.

Such questions share words with their document and so flatter full text; people's own share fewer.

Ceiling: 1; a question that two documents answer equally well bounds it below that.

Run: python benchmarks/rag_retrieval.py [--quick] [--questions 200]
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mainspring.apps.rag.index import Index, build_index
from mainspring.data.dataset import Dataset
from mainspring.data.pack import held_out_documents
from mainspring.evaluate.questions import Question, make_questions
from mainspring.evaluate.retrieval import ranks
from mainspring.spec import Settings
from mainspring.store import Store
from measure import Findings, parse_options, publish, readable

DEPTH, RRF = 30, 60
OURS, PEER = "hybrid", "rank fusion"
OWN_DOCS = str(Path(__file__).resolve().parents[1] / "docs")  # of this project: few enough for a quick run


def fused_by_rank(index: Index, question: str) -> list[str]:
    """Documents by the sum of 1 / (60 + rank) over full text and vectors."""
    score: dict[str, float] = defaultdict(float)
    for mode in ("text", "vector"):
        found = dict.fromkeys(hit.chunk.document for hit in index.search(question, DEPTH, mode=mode))
        for rank, document in enumerate(found, start=1):
            score[document] += 1 / (RRF + rank)
    return sorted(score, key=lambda document: (-score[document], document))


def documents_of(index: Index, question: str, *, mode: str) -> list[str]:
    """Documents in the order of their best chunk."""
    return [hit.chunk.document for hit in index.search(question, DEPTH, mode=mode)]  # pyright: ignore[reportArgumentType]


def prepared(home: Path, source: str, count: int) -> tuple[Index, tuple[Question, ...]]:
    """The index of the corpus, and the questions about its held-out documents."""
    with Store.open(Settings(home=str(home))) as store:
        snapshot = Dataset(store, "docs").read(source).clean().dedup().publish()
        index = Index.open(store, build_index(store, snapshot.ref, name="docs").ref)
        return index, make_questions(list(held_out_documents(store, snapshot.ref)), count)


def main() -> None:
    """Ask every arm every question."""
    options = parse_options(__doc__, questions=200)
    with TemporaryDirectory() as home:
        corpus, count = (OWN_DOCS, 5) if options.quick else ("python:docs", options.questions)
        index, questions = prepared(Path(home), corpus, count)
        arms: dict[str, Callable[[str], Sequence[str]]] = {
            OURS: lambda question: documents_of(index, question, mode="hybrid"),
            PEER: lambda question: fused_by_rank(index, question),
            "full text (BM25)": lambda question: documents_of(index, question, mode="text"),
            "vectors (LSA)": lambda question: documents_of(index, question, mode="vector"),
        }
        found = {name: ranks(search, questions) for name, search in arms.items()}
    mrr = {name: float(np.mean(np.where(rank > 0, 1 / np.maximum(rank, 1), 0))) for name, rank in found.items()}
    recall = {name: [float(np.mean((rank > 0) & (rank <= cut))) for cut in (1, 5, 10)] for name, rank in found.items()}
    publish(
        Findings(
            benchmark="rag_retrieval",
            headline=(
                f"mean reciprocal rank {readable(mrr[OURS])} on {len(questions)} held-out questions; reciprocal rank "
                f"fusion of the same lists {readable(mrr[PEER])}, full text alone {readable(mrr['full text (BM25)'])}"
            ),
            columns=("arm", "MRR", "recall at 1", "at 5", "at 10"),
            rows=tuple((name, f"{mrr[name]:.3f}", *(f"{share:.3f}" for share in recall[name])) for name in arms),
            numbers={"mrr": mrr[OURS], "peer_mrr": mrr[PEER]},
            spec={"questions": len(questions), "chunks": index.manifest.chunks, "weight": index.manifest.text_weight},
            samples={name: rank.tolist() for name, rank in found.items()},
        ),
        packages=("lancedb", "numpy"),
    )


if __name__ == "__main__":
    main()
