"""Serving nouns: sampling, engines, deployments."""

from mainspring.spec._spec import spec


@spec
class SamplingParams:
    """How to choose tokens. `temperature` 0 is greedy; `seed` fixes the draw whatever the batch.

    `max_tokens` None generates up to the end of the context. `stop` are strings that end the text and are not part
    of it; `logprobs` is how many alternatives to report for each token (None reports nothing).
    """

    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be between 0 and 2, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")


@spec
class EngineConfig:
    """Limits of one engine: token budget of a step, sequences at once and in the queue, and KV-cache blocks.

    `kv_bytes` of 0 sizes the cache for `max_sequences` at the model's full context, capped at a quarter of memory.
    """

    max_sequences: int = 32
    step_tokens: int = 512
    block_tokens: int = 32
    kv_bytes: int = 0
    max_waiting: int = 4096


@spec
class Deployment:
    """A served model: where it listens and what it serves."""

    url: str
    models: tuple[str, ...]
    run: str


@spec
class ServePayload:
    """What a serving rank is started with: (name, folder) of each model, and where to listen."""

    models: tuple[tuple[str, str], ...]
    host: str = "127.0.0.1"
    port: int = 0
    engine: EngineConfig = EngineConfig()
