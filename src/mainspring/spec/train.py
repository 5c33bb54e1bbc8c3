"""Training nouns: the numbers a recipe fixes and the messages a run leaves behind."""

from dataclasses import field

from mainspring.spec._spec import spec
from mainspring.spec.plan import Precision


@spec
class TrainConfig:
    """Everything about a training run that is a number. A recipe sets it; `-s name=value` overrides it.

    `global_batch` counts sequences per optimiser step over all ranks; `microbatch` of 0 lets the plan choose. The
    schedule warms up linearly over `warmup_steps`, then falls as a cosine to `min_lr_ratio * lr`.
    `checkpoint_every` of 0 keeps only the last checkpoint.
    """

    steps: int
    global_batch: int
    seq_len: int
    microbatch: int = 0
    lr: float = 1e-3
    warmup_steps: int = 20
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    precision: Precision = "fp32"
    seed: int = 0
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    log_every: int = 1
    eval_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "seq_len", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        floats = ("lr", "min_lr_ratio", "weight_decay", "beta1", "beta2", "clip_norm")
        for name in ("microbatch", "warmup_steps", "checkpoint_every", "eval_every", *floats):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        if self.microbatch and self.global_batch % self.microbatch:
            raise ValueError(f"global_batch ({self.global_batch}) is not a multiple of microbatch ({self.microbatch})")


@spec
class TrainPayload:
    """What each training rank is started with; everything it needs to rebuild the run from nothing, on any machine.

    `sources` are the recipe and the modules beside it that it imports, as (relative path, text), the recipe first;
    `plan_json` is a `Plan` and `config_json` the `TrainConfig` in force; `tokens` and `tokenizer` are references of
    artifacts; `checkpoints` is the folder or fsspec URL that is saved to and resumed from; `output` the name of the
    model to publish, made from the artifacts `inputs`; `settings_json` the `Settings` of the store they are all in.
    """

    run_id: str
    sources: tuple[tuple[str, str], ...]
    plan_json: str
    config_json: str
    tokens: str
    tokenizer: str
    checkpoints: str
    output: str
    inputs: tuple[str, ...] = ()
    settings_json: str = field(default="{}", repr=False)
