"""A flow whose process is ended from outside goes on where it was."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mainspring.spec import Settings
from mainspring.store import Store

PROGRAM = """
import sys
from pathlib import Path
from mainspring.flow.graph import from_toml
from mainspring.flow.run import run_graph
from mainspring.spec import Settings
from mainspring.store import Store
with Store.open(Settings(home=sys.argv[1])) as store:
    result = run_graph(from_toml(Path(sys.argv[2])), store, workers=1)
    print(result.state, *(f"{s.name}={s.state}" for s in result.steps))
"""
LONG_FLOW = """
[flow]
name = "long"
[steps.a]
call = "steps.py:mark"
with = {name = "a", wait_s = 0.0}
[steps.b]
call = "steps.py:mark"
with = {name = "b", wait_s = 0.0}
after = ["a"]
[steps.c]
call = "steps.py:mark"
with = {name = "c", wait_s = 30.0}
after = ["b"]
"""
LONG_STEPS = """
import threading
from pathlib import Path

def mark(name: str, wait_s: float) -> str:
    folder = Path(__file__).parent
    with (folder / name).open("a") as sink:
        sink.write("once\\n")
    if not (folder / "quick").exists():
        threading.Event().wait(wait_s)
    return name
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "state"), [(signal.SIGKILL, "FAILED"), (signal.SIGINT, "CANCELLED")])
def test_a_flow_that_was_killed_or_interrupted_goes_on_where_it_was(
    settings: Settings, tmp_path: Path, number: signal.Signals, state: str
) -> None:
    (tmp_path / "long.toml").write_text(LONG_FLOW)
    (tmp_path / "steps.py").write_text(LONG_STEPS)
    arguments = [sys.executable, "-c", PROGRAM, settings.home, str(tmp_path / "long.toml")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        for _ in range(1000):
            if (tmp_path / "c").exists():
                break
            threading.Event().wait(0.02)
        os.kill(child.pid, number)
        said, _ = child.communicate(timeout=30)
    assert said == ("" if number is signal.SIGKILL else "CANCELLED a=SUCCEEDED b=SUCCEEDED c=CANCELLED\n")
    (tmp_path / "quick").touch()
    again = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert again.stdout == "SUCCEEDED a=CACHED b=CACHED c=SUCCEEDED\n"
    assert [(tmp_path / name).read_text().count("once") for name in "abc"] == [1, 1, 2]
    with Store.open(settings) as store:
        new, old = store.runs("flow")
        assert (new.state, old.state) == ("SUCCEEDED", state)
        assert sorted(run.state for run in store.runs("step")) == sorted(["SUCCEEDED"] * 3 + [state])
