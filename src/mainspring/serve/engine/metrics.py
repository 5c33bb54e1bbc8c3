"""What operators watch, under vLLM's metric names, so that existing dashboards, routers and load tools work.

Every engine of a process reports here under its `model_name`; `/metrics` prints the registry.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
FALLEN: dict[int, str] = {}
"""Why each engine that failed is down, by its identity, until it is closed: what `/health` reports."""
LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_MODEL = ("model_name",)

RUNNING = Gauge("vllm:num_requests_running", "Sequences in the batch", _MODEL, registry=REGISTRY)
WAITING = Gauge("vllm:num_requests_waiting", "Requests in the queue", _MODEL, registry=REGISTRY)
KV_USAGE = Gauge("vllm:kv_cache_usage_perc", "Held share of the KV blocks, 0 to 1", _MODEL, registry=REGISTRY)
PREFIX_QUERIES = Counter("vllm:prefix_cache_queries", "Prompt tokens looked up", _MODEL, registry=REGISTRY)
PREFIX_HITS = Counter("vllm:prefix_cache_hits", "Prompt tokens found cached", _MODEL, registry=REGISTRY)
PREEMPTIONS = Counter("vllm:num_preemptions", "Sequences preempted", _MODEL, registry=REGISTRY)
PROMPT_TOKENS = Counter("vllm:prompt_tokens", "Prompt tokens of admitted requests", _MODEL, registry=REGISTRY)
GENERATION_TOKENS = Counter("vllm:generation_tokens", "Tokens sampled", _MODEL, registry=REGISTRY)
SUCCESS = Counter("vllm:request_success", "Finished requests", (*_MODEL, "finished_reason"), registry=REGISTRY)
TTFT_S = Histogram(
    "vllm:time_to_first_token_seconds", "Arrival to first token", _MODEL, buckets=LATENCY_S, registry=REGISTRY
)
INTER_TOKEN_S = Histogram(
    "vllm:inter_token_latency_seconds", "Between two tokens", _MODEL, buckets=LATENCY_S, registry=REGISTRY
)
E2E_S = Histogram(
    "vllm:e2e_request_latency_seconds", "Arrival to last token", _MODEL, buckets=LATENCY_S, registry=REGISTRY
)
QUEUE_S = Histogram(
    "vllm:request_queue_time_seconds", "Arrival to admission", _MODEL, buckets=LATENCY_S, registry=REGISTRY
)
STEP_TOKENS = Histogram(
    "vllm:iteration_tokens_total", "Tokens computed per step", _MODEL, buckets=TOKENS, registry=REGISTRY
)


class Meters:
    """The metrics of one model. Looked up once here: a lookup per token costs more than the observation."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.running = RUNNING.labels(model)
        self.waiting = WAITING.labels(model)
        self.kv_usage = KV_USAGE.labels(model)
        self.prefix_queries = PREFIX_QUERIES.labels(model)
        self.prefix_hits = PREFIX_HITS.labels(model)
        self.preemptions = PREEMPTIONS.labels(model)
        self.prompt_tokens = PROMPT_TOKENS.labels(model)
        self.generation_tokens = GENERATION_TOKENS.labels(model)
        self.ttft_s = TTFT_S.labels(model)
        self.inter_token_s = INTER_TOKEN_S.labels(model)
        self.e2e_s = E2E_S.labels(model)
        self.queue_s = QUEUE_S.labels(model)
        self.step_tokens = STEP_TOKENS.labels(model)

    def finished(self, reason: str) -> None:
        """Count a request that ran to its end."""
        SUCCESS.labels(self._model, reason).inc()
