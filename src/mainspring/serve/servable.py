"""What the HTTP server needs from anything it serves: a model's engine, an embedder, or a whole application.

A served name is a `Servable`. It turns one prompt into a stream of pieces; the HTTP layer turns pieces into the
OpenAI format and knows nothing about engines, indexes or applications.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mainspring.spec import SamplingParams


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to continue: exactly one of a text, token ids, or chat messages as (role, content) pairs.

    `echo` asks for the prompt back in the first piece, with log-probabilities when the sampling reports them.
    """

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    echo: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log-probability and the likeliest alternatives as (text, log-probability).

    `logprob` is None for the first token of a prompt, which nothing precedes.
    """

    text: str
    token_id: int
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of an answer. `text` may be empty while characters or a stop string are incomplete.

    `finish` is set on the last piece only; `prompt_tokens` on every piece; `prompt_text` and `prompt_logprobs` on
    the first, when the prompt asked for an echo. `metadata` (the citations of an assistant, say) is passed on to
    the client as it is.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0
    metadata: Mapping[str, object] | None = None
    prompt_text: str = ""
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector per input and the tokens they were made of; `nested` vectors may be cut to fewer dimensions."""

    vectors: list[list[float]]
    tokens: int
    nested: bool = False


Embeddable = str | tuple[int, ...]
"""A text, or token ids of the embedder's own tokenizer."""


class Servable(Protocol):
    """One served name. `context` is the longest prompt plus answer, in tokens."""

    name: str
    created_s: float
    context: int

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[Piece]:
        """Generate; errors in the request are raised before the first piece."""
        ...

    async def embed(self, inputs: Sequence[Embeddable]) -> Embeddings:
        """One vector of length 1 per input; `SpecError` when this model makes none, or has no tokens of that id."""
        ...

    def close(self) -> None:
        """Stop and free everything; running streams end with `Unavailable`."""
        ...
