"""Completion in a real bash on a terminal of its own, and how the words that it splits come together again."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.cli.completion import glued
from mainspring.spec import Settings
from mainspring.store import Store

MAINSPRING = Path(sys.executable).with_name("mainspring")
BUSY_S = 90.0


class Terminal:
    """An interactive bash that completes `mainspring`."""

    def __init__(self, folder: Path, home: str) -> None:
        asked = {**os.environ, "_MAINSPRING_COMPLETE": "source_bash"}
        script = subprocess.run([MAINSPRING], env=asked, capture_output=True, text=True, check=True).stdout
        (folder / "completion.sh").write_text(script)
        self._heard = ""
        self._process, self._line = pty.fork()
        if self._process == 0:
            path = f"{MAINSPRING.parent}:{os.environ['PATH']}"
            told = {**os.environ, "MAINSPRING_HOME": home, "PATH": path, "TERM": "dumb"}
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], told)
        self._type(f"source {folder}/completion.sh\r")

    def close(self) -> None:
        """Leave it."""
        self._type("exit\r")
        os.waitpid(self._process, 0)
        os.close(self._line)

    def complete(self, line: str) -> str:
        """What stands on the line after its end was completed, quoted and printed instead of run."""
        self._heard = ""
        self._type(f"{line}\t\x01echo '<\x05>'\r")
        deadline_s = time.monotonic() + BUSY_S
        while not (found := re.search(r"^<(.*)>\r$", self._heard, re.MULTILINE)):
            assert time.monotonic() < deadline_s, self._heard
            if select.select([self._line], [], [], 1.0)[0]:
                self._heard += os.read(self._line, 4096).decode()
        return found[1]

    def _type(self, text: str) -> None:
        os.write(self._line, text.encode())


@pytest.fixture
def terminal(settings: Settings, tmp_path: Path) -> Iterator[Terminal]:
    """A terminal over a workspace with one model of two versions and an assistant."""
    with Store.open(settings) as store:
        for number in range(2):
            (tmp_path / "file").write_text(str(number))
            store.publish("model", "handbook-lm", tmp_path / "file")
        store.publish("app", "helper", tmp_path / "file")
    found = Terminal(tmp_path, settings.home)
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on PATH")
def test_bash_completes_references_past_the_characters_it_splits_words_at(terminal: Terminal) -> None:
    complete = terminal.complete
    assert complete("mainspring show model:hand") == "mainspring show model:handbook-lm@"
    assert complete("mainspring show mod") == "mainspring show model:handbook-lm@"
    assert complete("mainspring show app:") == "mainspring show app:helper@1 "
    assert complete("mainspring show app:helper@") == "mainspring show app:helper@1 "
    assert complete("mainspring eval model:handbook-lm@2 --compare-to=mod").endswith(" --compare-to=model:handbook-lm@")
    assert complete("mainspring app ask he") == "mainspring app ask helper "
    assert (
        complete("mainspring lineage app:helper@1 --direction=u") == "mainspring lineage app:helper@1 --direction=up "
    )


@pytest.mark.parametrize(
    ("pieces", "words", "kept"),
    [
        (("show", "model", ":", "hand"), ["show", "model:hand"], "model:"),
        (("show", "model", ":"), ["show", "model:"], "model:"),
        (("show", "model", ":", "x", "@", "1"), ["show", "model:x@1"], "model:x"),
        (("show", "model", ":", "x", ""), ["show", "model:x", ""], ""),
        (("--data", "=", "dataset", ":", "x"), ["--data=dataset:x"], "dataset:"),
        (("--data", "=", "data"), ["--data=data"], ""),
        (("show", "model:hand"), ["show", "model:hand"], ""),
    ],
)
def test_words_come_together_as_they_were_typed(pieces: tuple[str, ...], words: list[str], kept: str) -> None:
    assert glued(pieces) == (words, kept)


@given(st.lists(st.text("ab:@=-", min_size=1), min_size=1, max_size=6))
def test_no_word_is_lost_and_what_is_kept_stands_before_the_cursor(pieces: list[str]) -> None:
    words, kept = glued(pieces)
    assert "".join(words) == "".join(pieces)
    assert kept in words[-1]
