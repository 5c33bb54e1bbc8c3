"""What a person meets at the command line: examples that work, refusals that help, tables that can be copied from."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mainspring.cli import flow_verb
from mainspring.cli.app import cli, main
from mainspring.flow.run import FlowEvent
from mainspring.spec import Settings
from mainspring.store import Store

Call = Callable[..., tuple[int, str, str]]
PAGE = (
    "A wheel is a disc that turns about an axle, and so carries a load with far less effort than dragging it would.\n"
)
WATCHED = """
[flow]
name = "watched"

[steps.documents]
call = "mainspring.apps.steps:documents"
with = { source = "docs", name = "watched" }
watch = ["docs"]
"""


@pytest.fixture
def call(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The command line in this process: its exit code, what it printed and what it told."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mainspring", "--home", settings.home, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb with the words that lead to it."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*path, name))
    else:
        yield path, command


def test_every_verb_has_an_example_that_its_options_accept() -> None:
    for path, command in verbs(typer.main.get_command(cli)):
        words = shlex.split(command.epilog.removeprefix("Example: ").replace(" --address auto", "", 1))
        typed = tuple(part for part in path if part != "recipe")  # what `plan` does unless told otherwise
        assert tuple(words[: len(typed) + 1]) == ("mainspring", *typed)
        command.make_context("mainspring", words[len(typed) + 1 :])


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ((), 2, "missing command"),
        (("data",), 2, ""),
        (("up", "--port", "99999"), 2, "65535"),
        (("serve", "model:x", "--port", "-1"), 2, "--port"),
        (("--address", "lokal", "ls"), 2, "hint: local, auto, ray://host:port"),
        (("token", "create", "x", "--days", "-1"), 2, "--days"),
        (("plan",), 2, ""),
        (("ls", "models"), 2, "hint: did you mean model?"),
        (("lineage", "handbook"), 2, "neither an artifact nor a run"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(call: Call, line: tuple[str, ...], code: int, told: str) -> None:
    found, _, err = call(*line)
    assert found == code
    assert told in err
    assert bool(err) is bool(told), "help alone is no error to be told"


@pytest.mark.parametrize(
    "verb", [("plan", "validate"), ("plan", "explain"), ("train", "r.py", "--data", "d", "--plan")]
)
def test_a_file_that_is_no_text_is_an_error_and_no_traceback(call: Call, tmp_path: Path, verb: tuple[str, ...]) -> None:
    file = tmp_path / "noise.json"
    file.write_bytes(b"\xc5?vTO\x8c" * 100)
    code, _, err = call(*verb, str(file))
    assert code == 2
    assert err.startswith("error: ")
    assert str(file) in err
    assert len(err) < len(str(file)) + 200


@pytest.mark.parametrize(("option", "value"), [("--ranks", "1"), ("--optimize", "energy")])
def test_a_plan_from_a_file_is_not_planned_again(call: Call, tmp_path: Path, option: str, value: str) -> None:
    plan = str(tmp_path / "plan.json")
    code, _, err = call("train", "recipe.py", "--data", "dataset:x", "--plan", plan, option, value)
    assert code == 2
    assert f"hint: leave {option} out, or --plan to plan again" in err
    code, _, err = call("train", "--resume", "x", option, value)
    assert code == 2
    assert "takes no other options" in err


def test_a_run_that_has_ended_is_not_asked_to_stop(call: Call, store: Store) -> None:
    record = store.start_run("train", "lm", config={})
    assert call("stop", record.id)[1] == f"asked {record.id} to stop\n"
    store.set_run_state(record.id, "RUNNING")
    store.set_run_state(record.id, "FAILED", "out of memory")
    before = store.events(kind="run.stop")
    assert call("stop", record.id)[:2] == (0, f"{record.id} has ended already: FAILED\n")
    assert store.events(kind="run.stop") == before


@pytest.mark.parametrize("verb", ["serve", "eval", "compress"])
def test_what_is_not_a_model_is_called_what_it_is(call: Call, store: Store, tmp_path: Path, verb: str) -> None:
    (tmp_path / "app.json").write_text("{}")
    store.publish("app", "helper", tmp_path / "app.json")
    code, _, err = call(verb, "app:helper")
    assert code == 2
    assert "app:helper@1 is of kind app, only a model" in err


def test_a_server_that_asks_for_a_token_says_so(settings: Settings, store: Store) -> None:
    store.create_token("me", "viewer")
    line = [str(Path(sys.executable).with_name("mainspring")), "--home", settings.home, "up", "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        told = [server.stdout.readline() for _ in range(6)]
        server.send_signal(signal.SIGTERM)
    assert told[-2].startswith("token    asked of every caller")


def test_what_still_runs_is_listed_however_many_runs_ended_since(call: Call, store: Store) -> None:
    served = store.start_run("serve", "lm", config={})
    store.set_run_state(served.id, "RUNNING")
    for name in ("one", "two", "three"):
        ended = store.start_run("step", name, config={})
        store.set_run_state(ended.id, "RUNNING")
        store.set_run_state(ended.id, "SUCCEEDED")
    assert served.id in call("ps", "-n", "2")[1]
    assert call("ps", "--all", "--kind", "trian")[1] == "no runs of kind 'trian' yet\n"


def test_ctrl_c_while_the_verbs_are_still_imported_is_no_error() -> None:
    early = """
import sys

class Early:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Early)
from mainspring.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def test_without_a_terminal_a_flow_tells_what_ends_and_now_and_then_what_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with flow_verb.drawn() as tell:
        tell(FlowEvent(step="train", state="RUNNING"))
        tell(FlowEvent(step="train", state="RUNNING", fraction=0.01, message="step 1/100"))
        monkeypatch.setattr(flow_verb, "SAY_EVERY_S", 0.0)
        tell(FlowEvent(step="train", state="RUNNING", fraction=0.5, message="step 50/100"))
        tell(FlowEvent(step="train", state="SUCCEEDED"))
    assert capsys.readouterr().err == "… train 50% step 50/100\n✓ train SUCCEEDED\n"


def test_a_watched_flow_outlives_a_step_that_fails(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "flow.toml").write_text(WATCHED)
    line = [str(Path(sys.executable).with_name("mainspring")), "--home", settings.home, "run", "flow.toml", "--watch"]
    with subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as watching:
        assert watching.stderr
        told = []
        for said in watching.stderr:
            told.append(said)
            if said.startswith("waiting"):
                if len([line for line in told if line == said]) == 2:
                    break
                (tmp_path / "docs" / "page.txt").write_text(PAGE)
        watching.send_signal(signal.SIGTERM)
    assert any(said.startswith("hint: readable: Markdown") for said in told)
    assert "✓ documents SUCCEEDED\n" in told


def test_a_long_note_is_cut_for_a_person_and_whole_for_a_program(call: Call, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store.publish("model", "lm", tmp_path / "file", meta={"layers": {f"layer {n}": n / 7 for n in range(100)}})
    assert max(map(len, call("show", "model:lm")[1].splitlines())) < 250
    assert "layer 99" in call("show", "model:lm", "--json")[1]
