"""Settings: every `MAINSPRING_*` environment variable, read in this one place.

A misspelt variable is an error that names the nearest known one, because a setting that silently stays at its
default is found hours later.
"""

import difflib
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import field, fields
from pathlib import Path

from mainspring.spec._spec import spec
from mainspring.spec.errors import SpecError

PREFIX = "MAINSPRING_"
_QUIET = {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DAFT_PROGRESS_BAR": "0",
    "DO_NOT_TRACK": "1",
    "GOMP_SPINCOUNT": "1000",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LANCE_LOG": "error",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@spec
class Settings:
    """Where things live and where to listen.

    `database_url` is an SQLAlchemy URL and `artifacts_url` any fsspec URL or folder; when empty they are
    `<home>/mainspring.db` and `<home>/artifacts`. `address` is the Ray cluster: `local`, `auto` or `ray://host:port`.
    `quotas` is a TOML file with the tree of queues that jobs are admitted under; empty for one queue without limits.
    `fetched_gb` is how much disk the local copies of artifacts may take before the longest unused ones are removed.
    What may hold a password or a token is not in the `repr`, which ends up in logs.
    """

    home: str = "~/.mainspring"
    workspace: str = "default"
    database_url: str = field(default="", repr=False)
    artifacts_url: str = field(default="", repr=False)
    address: str = "local"
    host: str = "127.0.0.1"
    port: int = 8420
    token: str = field(default="", repr=False)
    log_level: str = "WARNING"
    quotas: str = ""
    fetched_gb: int = 100

    @property
    def home_path(self) -> Path:
        """The absolute folder for the database, artifacts, datasets and runs."""
        try:
            return Path(self.home).expanduser().absolute()
        except RuntimeError as error:
            raise SpecError(
                f"cannot tell where {self.home} is: {error}", hint=f"set {PREFIX}HOME to a folder"
            ) from error

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.home_path / 'mainspring.db'}"

    @property
    def artifacts(self) -> str:
        """The fsspec URL or folder that holds artifact blobs."""
        return self.artifacts_url or str(self.home_path / "artifacts")


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read `MAINSPRING_*` from `environ` (the process environment by default).

    Raises `SpecError` for an unknown variable (with the nearest known one) and for a value of the wrong type.
    """
    values = os.environ if environ is None else environ
    kinds = {field.name: field.type for field in fields(Settings)}
    found: dict[str, str | int] = {}
    for key, value in values.items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX).lower()
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {PREFIX}{near[0].upper()}?" if near else "known: " + ", ".join(sorted(kinds))
            raise SpecError(f"unknown environment variable {key}", hint=hint)
        if kinds[name] is not int:
            found[name] = value
        elif value.isdecimal():
            found[name] = int(value)
        else:
            raise SpecError(f"{key}={value!r} is not a whole number")
    return Settings(**found)  # pyright: ignore[reportArgumentType]


def process_environment() -> dict[str, str]:
    """A copy of the environment, for handing to a child process."""
    return dict(os.environ)


@contextmanager
def variable(name: str, value: str) -> Generator[None]:
    """Have `name` in the environment of this process and its children meanwhile; what the user has set wins."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


def quiet_third_parties() -> None:
    """Switch off the telemetry and progress bars of libraries that read the environment when imported.

    And their busy waiting: torch's idle OpenMP threads spin for milliseconds, which takes the cores from whoever else
    computes (evaluating a model beside two training ranks took 22 s; 6 s when they spin as briefly as they do where
    threads outnumber cores). A value the user has already set wins. To be called before torch, daft, lance or ray
    is imported.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
