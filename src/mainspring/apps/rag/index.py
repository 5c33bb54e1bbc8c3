"""Build and search the index of one snapshot: a LanceDB table with vectors and full text, and its embedder.

Search is hybrid: what BM25 and cosine similarity find is joined by `fusion`, whose weight is chosen when the index is
built, on questions made from documents that are not held out. Headings count twice in the full text.
A rebuild keeps the vectors of chunks that did not change, and the fitted embedder and the weight while few did.
"""

import json
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mainspring.apps.rag.chunk import TARGET, chunk_document
from mainspring.apps.rag.fusion import TEXT_WEIGHT, Candidate, choose_weight, fuse
from mainspring.apps.rag.terms import STOP, content_terms, phrases, stem, terms
from mainspring.data.pack import held_out_sources
from mainspring.data.snapshot import texts
from mainspring.evaluate.questions import make_questions
from mainspring.models.embedder import Embedder, fit_lsa, load_embedder
from mainspring.spec import Artifact, Chunk, Document, NotFound, Progress, SpecError, silent, spec
from mainspring.store import Store
from mainspring.store.parse import read_json, to_json

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

Mode = Literal["hybrid", "text", "vector"]
FORMAT = 1
CANDIDATES = 50
"""How many chunks each search hands to the fusion."""
TUNING_QUESTIONS = 200
"""On how many of the corpus's own questions the weight of the fusion is chosen."""
REFIT_SHARE = 0.1
"""An embedder fitted on the corpus is kept while at most this share of the chunks is new."""
APPROXIMATE_FROM = 50_000
"""From this many chunks on, vectors get an approximate index; below, an exact scan answers in milliseconds."""
_QUERY_TERMS = 64
_QUERY_CHARACTERS = 2000
_CHUNK = ("id", "document", "source", "path", "text", "start", "end")
_COLUMNS = (*_CHUNK, "terms", "vector")


@spec
class IndexManifest:
    """What an index was made of. `embedder` is as asked for ("lsa", a folder or a name), `dim` its width.

    `text_weight` is the weight of BM25 in the fusion, chosen on `questions` questions of the snapshot `tuned_on`.
    """

    snapshot: str
    embedder: str
    dim: int
    documents: int
    chunks: int
    text_weight: float = TEXT_WEIGHT
    questions: int = 0
    tuned_on: str = ""
    target: int = TARGET
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found, and its score (the larger the better; comparable within one search only)."""

    chunk: Chunk
    score: float


class Index:
    """An opened index; threads may share it."""

    def __init__(self, folder: Path, ref: str = "") -> None:
        lancedb = _lancedb()
        path = folder / "index.json"
        if not path.is_file():
            raise SpecError(f"{folder} is not an index: it has no index.json", hint="build one with build_index")
        self.ref = ref
        self.folder = folder
        self.manifest = read_json(path.read_text(encoding="utf-8"), IndexManifest)
        if self.manifest.format != FORMAT:
            raise SpecError(f"index format {self.manifest.format}, this version reads {FORMAT}", hint="build it again")
        self.embedder = load_embedder(str(folder / "embedder"))
        self._table = lancedb.connect(str(folder)).open_table("chunks")
        self._frequency: dict[str, int] = json.loads((folder / "terms.json").read_text(encoding="utf-8"))

    @classmethod
    def open(cls, store: Store, ref: str) -> "Index":
        """The index published as `ref`."""
        artifact = store.resolve(ref)
        return cls(store.fetch(artifact), artifact.ref)

    def search(self, question: str, k: int = 8, *, mode: Mode = "hybrid") -> list[Hit]:
        """The best `k` chunks, best first; the same question gives the same list. Any text is a valid question."""
        if mode == "hybrid":
            ranked = fuse(self.candidates(question, max(k, CANDIDATES)), self.manifest.text_weight)
            return [Hit(found.chunk, score) for found, score in ranked[:k]]
        rows = self._by_text(question, k) if mode == "text" else self._by_vector(self._vector(question), k)
        hits = [Hit(_chunk(row), row["_score"] if mode == "text" else 1 - row["_distance"]) for row in rows]
        return sorted(hits, key=lambda hit: (-hit.score, hit.chunk.id))

    def candidates(self, question: str, count: int = CANDIDATES) -> list[Candidate]:
        """The best `count` chunks of either search, each with all that the fusion asks of it."""
        vector = self._vector(question)
        by_text, by_vector = self._by_text(question, count), self._by_vector(vector, count)
        scores = {row["id"]: float(row["_score"]) for row in by_text}
        asked = self.asked(question)
        return [
            Candidate(
                chunk=_chunk(row),
                text=scores.get(row["id"], 0.0),
                cosine=float(np.dot(vector, row["vector"])),
                coverage=self.coverage(asked, map(stem, row["terms"].split())),
            )
            for row in {row["id"]: row for row in (*by_text, *by_vector)}.values()
        ]

    def asked(self, question: str) -> list[str]:
        """The terms that carry what `question` is about, with those of its phrases that a heading here has."""
        question = question[:_QUERY_CHARACTERS]
        return content_terms(question) + [stem(phrase) for phrase in self._known_phrases(question)]

    def _known_phrases(self, question: str) -> list[str]:
        return [phrase for phrase in phrases([question]) if stem(phrase) in self._frequency]

    def idf(self, term: str) -> float:
        """How much a (stemmed) term tells: log of chunks per chunk that has it; largest for an unknown term."""
        return math.log(1 + self.manifest.chunks / (1 + self._frequency.get(term, 0)))

    def coverage(self, question_terms: Iterable[str], text_terms: Iterable[str]) -> float:
        """The share of the question's information (idf) that `text_terms` contain; 0 for no terms."""
        asked, there = list(question_terms), set(text_terms)
        whole = sum(map(self.idf, asked))
        return sum(self.idf(term) for term in asked if term in there) / whole if whole else 0.0

    def encode(self, passages: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of `passages`, each of length 1 or 0; dot products are similarities."""
        return self.embedder.encode([_prepared(text, self.manifest.embedder) for text in passages])

    def vectors(self) -> dict[str, NDArray[np.float32]]:
        """Every chunk's vector by chunk id."""
        rows = self._table.to_arrow().select(["id", "vector"])
        matrix = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, self.manifest.dim)
        return dict(zip(rows["id"].to_pylist(), matrix, strict=True))

    def _vector(self, question: str) -> NDArray[np.float32]:
        return self.encode([question[:_QUERY_CHARACTERS]])[0]

    def _by_text(self, question: str, count: int) -> list[dict[str, Any]]:
        from lancedb.query import MatchQuery

        question = question[:_QUERY_CHARACTERS]
        asked = [word for word in terms(question) if word not in STOP] + self._known_phrases(question)
        words = list(dict.fromkeys(asked))[:_QUERY_TERMS]
        if not words:
            return []
        match: Any = MatchQuery(" ".join(words), "terms")  # pyright: ignore[reportCallIssue]
        query: Any = self._table.search(match, query_type="fts")
        return query.select([*_COLUMNS, "_score"]).limit(count).to_list()

    def _by_vector(self, vector: NDArray[np.float32], count: int) -> list[dict[str, Any]]:
        if not np.any(vector):  # an LSA of a question without a known word: every chunk is equally far
            return []
        query: Any = self._table.search(vector, vector_column_name="vector", query_type="vector")
        query = query.distance_type("cosine").nprobes(20).refine_factor(10)
        return query.select([*_COLUMNS, "_distance"]).limit(count).to_list()


def build_index(
    store: Store,
    snapshot_ref: str,
    *,
    embedder: str = "lsa",
    name: str,
    run: str = "",
    progress: Progress = silent,
) -> Artifact:
    """Chunk, embed and publish the documents of a snapshot as `index:name`.

    `embedder` is "lsa" (fitted on the corpus, needs no weights) or the folder or hub name of a sentence-transformers
    model. Chunks that the latest `index:name` already holds keep their vectors.
    """
    snapshot = store.resolve(snapshot_ref).ref
    documents = list(texts(store, snapshot))
    progress(0.05, f"cutting {len(documents)} documents")
    chunks = [chunk for document in documents for chunk in chunk_document(document)]
    if not chunks:
        raise SpecError(f"{snapshot} has no text to index ({len(documents)} documents)")
    previous = _previous(store, name, embedder)
    known = previous.vectors() if previous else {}
    fresh = [chunk for chunk in chunks if chunk.id not in known]
    if previous and embedder == "lsa" and len(fresh) > REFIT_SHARE * len(chunks):
        known, previous, fresh = {}, None, chunks
    progress(0.15, f"embedding {len(fresh)} of {len(chunks)} chunks")
    passages = [_prepared(passage(chunk), embedder) for chunk in fresh]
    encoder = previous.embedder if previous else _encoder(embedder, passages)
    if fresh:
        vectors = _encode(encoder, passages, progress)
        known |= {chunk.id: vector for chunk, vector in zip(fresh, vectors, strict=True)}
    manifest = IndexManifest(
        snapshot=snapshot, embedder=embedder, dim=encoder.dim, documents=len(documents), chunks=len(chunks)
    )
    progress(0.8, f"writing {len(chunks)} chunks")
    with store.scratch() as scratch:
        folder = scratch / "index"
        _write(folder, manifest, chunks, np.stack([known[chunk.id] for chunk in chunks]), encoder)
        progress(0.9, "choosing the weight of text against vectors")
        tuned = _tuned(Index(folder), documents, previous)
        (folder / "index.json").write_text(to_json(tuned), encoding="utf-8")
        meta = {"snapshot": snapshot, "chunks": len(chunks), "embedded": len(fresh), "embedder": embedder}
        meta |= {"text_weight": tuned.text_weight, "questions": tuned.questions}
        artifact = store.publish("index", name, folder, meta=meta, run=run, inputs=(snapshot,))
    log.info("index published", extra={"ref": artifact.ref, "chunks": len(chunks), "embedded": len(fresh)})
    progress(1.0, f"{artifact.ref}: {len(chunks)} chunks of {len(documents)} documents, {len(fresh)} embedded")
    return artifact


def passage(chunk: Chunk) -> str:
    """What is embedded and indexed for a chunk: where it stands, then its text."""
    return f"{_place(chunk)}\n{chunk.text}"


def indexed_terms(chunk: Chunk) -> list[str]:
    """What a chunk can be found by, stemmed: the terms of its passage and the phrases of its headings."""
    return content_terms(passage(chunk)) + [stem(phrase) for phrase in phrases(chunk.path)]


def _place(chunk: Chunk) -> str:
    return " > ".join(chunk.path) or chunk.source


def _prepared(text: str, embedder: str) -> str:
    """What the embedder reads: a model its sentence, LSA the stems of its content words, which is all it can use."""
    return " ".join(stem(term) for term in terms(text) if term not in STOP) if embedder == "lsa" else text


def _previous(store: Store, name: str, embedder: str) -> Index | None:
    """The latest index of this name, where its vectors can be used again."""
    try:
        index = Index.open(store, f"index:{name}")
    except (NotFound, SpecError):
        return None
    return index if (index.manifest.embedder, index.manifest.target) == (embedder, TARGET) else None


def _encoder(embedder: str, passages: Sequence[str]) -> Embedder:
    return fit_lsa(passages) if embedder == "lsa" else load_embedder(embedder)


def _tuned(index: Index, documents: Sequence[Document], previous: Index | None) -> IndexManifest:
    """The manifest with the weight chosen on this corpus, or still the one of an index that is mostly the same."""
    if previous and previous.manifest.questions:
        before = previous.manifest
        weight, asked, snapshot = before.text_weight, before.questions, before.tuned_on
    else:
        kept_back = held_out_sources(document.source for document in documents)
        seen = [document for document in documents if document.source not in kept_back]
        questions = make_questions(seen, TUNING_QUESTIONS)
        found = [(index.candidates(question.text), question.document) for question in questions]
        weight, asked, snapshot = choose_weight(found), len(found), index.manifest.snapshot
    return replace(index.manifest, text_weight=weight, questions=asked, tuned_on=snapshot)


def _encode(encoder: Embedder, passages: list[str], progress: Progress, batch: int = 512) -> NDArray[np.float32]:
    vectors = []
    for start in range(0, len(passages), batch):
        vectors.append(encoder.encode(passages[start : start + batch]))
        progress(0.2 + 0.6 * min(1.0, (start + batch) / len(passages)), f"embedding {len(passages)} chunks")
    return np.concatenate(vectors)


def _lancedb() -> Any:
    import lancedb

    # What forks here is Ray starting its processes, whose children run another program at once.
    warnings.filterwarnings("ignore", message="lancedb fork support", category=RuntimeWarning)
    return lancedb


def _write(
    folder: Path, manifest: IndexManifest, chunks: Sequence[Chunk], vectors: NDArray[np.float32], encoder: Embedder
) -> None:
    lancedb = _lancedb()
    from lancedb.index import FTS, IvfRq

    folder.mkdir(parents=True)
    encoder.save(folder / "embedder")
    words = [terms(passage(chunk)) + terms(_place(chunk)) + phrases(chunk.path) for chunk in chunks]
    table = lancedb.connect(str(folder)).create_table("chunks", _rows(chunks, words, vectors))
    table.create_index(
        "terms", config=FTS(base_tokenizer="whitespace", stem=True, remove_stop_words=True, with_position=False)
    )
    if len(chunks) >= APPROXIMATE_FROM:
        table.create_index("vector", config=IvfRq(distance_type="cosine"))
    frequency = Counter(term for chunk in chunks for term in indexed_terms(chunk))
    (folder / "terms.json").write_text(json.dumps(frequency, ensure_ascii=False, sort_keys=True), encoding="utf-8")
    (folder / "index.json").write_text(to_json(manifest), encoding="utf-8")


def _rows(chunks: Sequence[Chunk], words: Sequence[list[str]], vectors: NDArray[np.float32]) -> "pa.Table":
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.table(
        {
            "id": [chunk.id for chunk in chunks],
            "document": [chunk.document for chunk in chunks],
            "source": [chunk.source for chunk in chunks],
            "path": pa.array([list(chunk.path) for chunk in chunks], pa.list_(pa.string())),
            "text": [chunk.text for chunk in chunks],
            "start": [chunk.start for chunk in chunks],
            "end": [chunk.end for chunk in chunks],
            "terms": [" ".join(found) for found in words],
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )


def _chunk(row: dict[str, Any]) -> Chunk:
    values = {column: row[column] for column in _CHUNK}
    return Chunk(**{**values, "path": tuple(values["path"])})
