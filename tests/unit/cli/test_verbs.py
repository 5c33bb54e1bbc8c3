"""What a person meets at the command line: examples that work, refusals that help, tables that can be copied from."""

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mainspring.cli.app import cli, main
from mainspring.spec import Settings
from mainspring.store import Store

Call = Callable[..., tuple[int, str, str]]


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
        words = shlex.split(command.epilog.removeprefix("Example: "))
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
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(call: Call, line: tuple[str, ...], code: int, told: str) -> None:
    found, _, err = call(*line)
    assert found == code
    assert told in err
    assert bool(err) is bool(told), "help alone is no error to be told"


def test_a_run_that_has_ended_is_not_asked_to_stop(call: Call, store: Store) -> None:
    record = store.start_run("train", "lm", config={})
    assert call("stop", record.id)[1] == f"asked {record.id} to stop\n"
    store.set_run_state(record.id, "RUNNING")
    store.set_run_state(record.id, "FAILED", "out of memory")
    before = store.events(kind="run.stop")
    assert call("stop", record.id)[:2] == (0, f"{record.id} has ended already: FAILED\n")
    assert store.events(kind="run.stop") == before


def test_a_long_note_is_cut_for_a_person_and_whole_for_a_program(call: Call, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store.publish("model", "lm", tmp_path / "file", meta={"layers": {f"layer {n}": n / 7 for n in range(100)}})
    assert max(map(len, call("show", "model:lm")[1].splitlines())) < 250
    assert "layer 99" in call("show", "model:lm", "--json")[1]
