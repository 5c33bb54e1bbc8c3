"""Fixtures every suite shares: an isolated home, and third-party telemetry switched off before anything is imported."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    DAFT_ANALYTICS_ENABLED="0",
    DAFT_PROGRESS_BAR="0",
    DO_NOT_TRACK="1",
    GOMP_SPINCOUNT="1000",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
for name in [key for key in os.environ if key.startswith("MAINSPRING_")]:
    del os.environ[name]

# How long one example takes says how busy the machine is, not whether it is right.
hypothesis.settings.register_profile("mainspring", deadline=None)
hypothesis.settings.load_profile("mainspring")

# A shell that starts this suite in the background makes it ignore Ctrl-C, and so would every command it tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from mainspring.spec import Settings  # noqa: E402  the environment comes first


@pytest.fixture(scope="module", autouse=True)
def own_process_state() -> Iterator[None]:
    """What a module sets for the whole process (variables, torch's threads) ends with it."""
    variables, torch = dict(os.environ), sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    yield
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    if torch:
        torch.set_num_threads(threads)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a workspace that lives in this test's own folder, also seen by child processes."""
    home = tmp_path / "home"
    monkeypatch.setenv("MAINSPRING_HOME", str(home))
    return Settings(home=str(home))


@pytest.fixture
def store(settings: Settings) -> Iterator[object]:
    """An open store in this test's own folder."""
    from mainspring.store import Store

    with Store.open(settings) as opened:
        yield opened
