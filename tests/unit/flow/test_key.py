"""Action keys are the same wherever they are computed."""

import os
import subprocess
import sys

NAMED = frozenset({"north", "south", "east", "west", "up", "down"})


def named() -> int:
    return len(NAMED | {("pair", NAMED)})


def test_a_set_among_the_constants_is_the_same_in_every_process() -> None:
    program = (
        "import importlib.util, sys; s = importlib.util.spec_from_file_location('steps', sys.argv[1]);"
        "m = importlib.util.module_from_spec(s); sys.modules['steps'] = m; s.loader.exec_module(m);"
        "from mainspring.flow.key import Digests; print(Digests().code(m.named, 'steps:named'))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", program, __file__],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] != ""
