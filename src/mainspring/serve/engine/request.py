"""One request inside the engine: its tokens, how far they are computed, and the text already given out.

WAITING -> PREFILL -> DECODE -> DONE, and back to WAITING when preempted. Preemption loses keys and values only:
tokens, text and random numbers continue where they were, so the client sees nothing but a pause.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Literal

from mainspring.models.tokenizer import TextStream, Tokenizer
from mainspring.serve.engine.sample import Choice, Sampled
from mainspring.serve.servable import Piece, TokenLogprob
from mainspring.spec import SamplingParams

State = Literal["WAITING", "PREFILL", "DECODE", "DONE"]
Finish = Literal["stop", "length"]


class StopFilter:
    """Lets text through up to the first stop string, never any part of one.

    Invariant: `_held` is the longest end of the text so far that begins some stop string; it is given out as soon as
    the next characters rule that out, or at the end.
    """

    def __init__(self, stops: Items[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to give out after `text` arrived, and whether a stop string was met."""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def finish(self) -> str:
        """What was held back for a stop string that never came."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's mutable state, owned by the engine's thread. `key` is its arrival number.

    `computed` counts tokens with keys and values in `slot`; `held` the blocks taken from the pool; `hashes` cover
    the full blocks of `tokens`, of which the first `saved` are cached. `score` asks for prompt log-probabilities.
    """

    key: int
    tokens: list[int]
    sampling: SamplingParams
    seed: int
    stream: TextStream
    stops: StopFilter
    arrived_s: float
    score: bool = False
    prompt_tokens: int = field(init=False)
    state: State = "WAITING"
    computed: int = 0
    held: int = 0
    slot: int = -1
    saved: int = 0
    hashes: list[bytes] = field(default_factory=list)
    scores: list[TokenLogprob] = field(default_factory=list)
    unsent: list[int] = field(default_factory=list)
    first_s: float = 0.0
    last_s: float = 0.0

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)

    @property
    def generated(self) -> int:
        """How many tokens have been sampled."""
        return len(self.tokens) - self.prompt_tokens

    def choice(self) -> Choice:
        """How to sample this request's next token."""
        params = self.sampling
        return Choice(params.temperature, params.top_p, self.seed, self.generated, params.logprobs)

    def preempt(self) -> None:
        """Forget what lived in the cache."""
        self.state, self.computed, self.held, self.slot, self.saved = "WAITING", 0, 0, -1, 0
        if not self.generated:
            self.scores.clear()

    def accept(self, sampled: Sampled, *, tokenizer: Tokenizer) -> Piece | None:
        """Append a sampled token; return what the client should see now, None when it completes nothing."""
        self.tokens.append(sampled.token)
        self.unsent.append(sampled.token)
        self.state = "DECODE"
        finish: Finish | None = None
        text, stopped = self.stops.push(self.stream.push((sampled.token,)))
        if stopped or (sampled.token in tokenizer.stop_ids and not self.sampling.ignore_eos):
            finish = "stop"
        elif self.generated == self.sampling.max_tokens:
            finish = "length"
        if finish and not stopped:
            rest, stopped = self.stops.push(self.stream.finish())
            text += rest if stopped else rest + self.stops.finish()
            finish = "stop" if stopped else finish
        if not (text or finish or sampled.logprob is not None):
            return None
        return self._piece(text, sampled, finish=finish, tokenizer=tokenizer)

    def _piece(self, text: str, sampled: Sampled, *, finish: Finish | None, tokenizer: Tokenizer) -> Piece:
        piece = Piece(
            text=text,
            token_ids=tuple(self.unsent),
            logprobs=(named(sampled, tokenizer),) if sampled.logprob is not None else None,
            finish=finish,
            prompt_tokens=self.prompt_tokens,
            prompt_logprobs=tuple(self.scores) if self.scores else None,
        )
        self.unsent.clear()
        self.scores.clear()
        if finish:
            self.state = "DONE"
        return piece


def named(sampled: Sampled, tokenizer: Tokenizer) -> TokenLogprob:
    """A sampled token with its text and that of its alternatives."""
    top = tuple((tokenizer.decode((token,), keep_special=True), logprob) for token, logprob in sampled.top)
    return TokenLogprob(tokenizer.decode((sampled.token,), keep_special=True), sampled.token, sampled.logprob, top)
