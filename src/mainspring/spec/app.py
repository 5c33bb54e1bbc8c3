"""Application nouns: chunks, cited answers, traces and feedback."""

from typing import Literal

from mainspring.spec._spec import spec

AnswerMode = Literal["generated", "extracted"]
Thumb = Literal["up", "down"]


@spec
class Chunk:
    """A passage of one document: `[start, end)` are character offsets into its text, `path` its headings."""

    id: str
    document: str
    source: str
    path: tuple[str, ...]
    text: str
    start: int
    end: int


@spec
class Citation:
    """One passage an answer rests on; `marker` is the number printed as `[n]` in the answer."""

    marker: int
    chunk: str
    source: str
    path: tuple[str, ...]
    quote: str  # house: what an answer tells its reader; clients of the API show it
    score: float


@spec
class Answer:
    """A cited answer. `mode` says whether the generator wrote it or passages were extracted, `note` why."""

    trace: str
    question: str
    text: str
    citations: tuple[Citation, ...]
    mode: AnswerMode
    note: str = ""

    def __str__(self) -> str:
        places = [(cited.marker, dict.fromkeys((cited.source, *cited.path))) for cited in self.citations]
        sources = [f"  [{marker}] {' > '.join(path)}" for marker, path in places]
        return "\n".join([self.text, *sources, *([f"note: {self.note}"] if self.note else [])])


@spec
class Trace:
    """Everything needed to replay an answer: exact index, chunks with scores, prompt and model."""

    id: str
    app: str
    question: str
    answer: str
    mode: AnswerMode
    index: str
    snapshot: str
    model: str
    chunks: tuple[str, ...]
    scores: tuple[float, ...]
    prompt: str
    seconds: float


@spec
class Feedback:
    """What a person thought of one answer, tied to the trace and to what the answer was made from."""

    trace: str
    thumb: Thumb
    correction: str
    comment: str
    chunks: tuple[str, ...]
    snapshot: str
    author: str
    time_s: float
