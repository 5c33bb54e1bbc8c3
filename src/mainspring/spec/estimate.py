"""Estimate nouns: a piece of work in round figures, and what it takes on one kind of device."""

from typing import Literal

from mainspring.spec._spec import spec

Work = Literal["train", "finetune", "serve"]


@spec
class WorkSize:
    """A model and what is done with it.

    `params` are all parameters and `active` those that one token uses (0: all). `tokens` are seen in training, or
    written in serving; for a diffusion model they are images times `latent_tokens`, and `steps` is how often the
    model is called for one image. `adapter` is the share of the parameters that fine-tuning trains (1: all).
    `kv_bytes_per_token` is what serving keeps of each of `context` tokens of `batch` sequences. Serving may be asked to
    keep up with `rate` requests a second, each of `prompt` tokens read and `answer` written; without `tokens` it is a
    day's, at this rate or at full load.
    """

    work: Work
    params: float
    tokens: float = 0.0
    active: float = 0.0
    bits: float = 16.0
    adapter: float = 1.0
    steps: int = 1
    kv_bytes_per_token: float = 0.0
    context: int = 0
    batch: int = 1
    rate: float = 0.0
    prompt: int = 0
    answer: int = 256

    def __post_init__(self) -> None:
        for name in ("params", "bits") if self.work == "serve" else ("params", "tokens", "bits"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")
        if min(self.tokens, self.rate, self.prompt, self.kv_bytes_per_token) < 0:
            raise ValueError("tokens, rate, prompt and cache are not negative")
        if (self.rate or self.prompt) and self.work != "serve":
            raise ValueError(f"a rate and a prompt must be those of serving, not of {self.work}")
        if not 0 <= self.active <= self.params:
            raise ValueError(f"active parameters are at most all {self.params:g}, got {self.active:g}")
        if not 0 < self.adapter <= 1:
            raise ValueError(f"the trained share of the parameters lies in (0, 1], got {self.adapter:g}")
        if min(self.steps, self.batch, self.answer) < 1 or self.context < 0:
            raise ValueError("steps, batch and answer are at least 1, and context is not negative")


@spec
class Site:
    """Where it runs: power of the building over that of the devices, grams of CO2 per kWh, and a device's price."""

    pue: float = 1.2
    carbon_grams_per_kwh: float = 445.0
    price_usd_per_hour: float = 0.0


@spec
class Instance:
    """A machine one can rent: `devices` of one kind, and its price by the hour, 0 where none is stated."""

    name: str
    device: str
    devices: int
    price_usd_per_hour: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        if self.devices < 1 or self.price_usd_per_hour < 0:
            raise ValueError(f"{self.name} has {self.devices} devices for {self.price_usd_per_hour:g} USD an hour")


@spec
class InstanceFile:
    """`[[instances]]` tables in TOML."""

    instances: tuple[Instance, ...]


@spec
class Sized:
    """What a piece of work takes on `devices` of one kind. `least` is the fewest that hold it.

    With an `instance` these are as many as whole machines of that name have. `utilisation` is the share of the dense
    peak that is counted on; `methods` say where each figure comes from.
    """

    device: str
    devices: int
    least: int
    flops: float
    utilisation: float
    memory_bytes: int
    device_memory_bytes: int
    device_hours: float
    days: float
    kwh: float
    co2_kg: float
    price_usd: float
    tokens_per_s: float
    methods: tuple[str, ...]
    instance: str = ""
    instances: int = 0
