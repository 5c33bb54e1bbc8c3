"""How long does `mainspring --help` take, and what does it import?

Each sample is a fresh process of the installed command, in turn with `python -c pass`, the floor under any Python
program. The clock is what a person waits; processor time is what is left of it on a machine with nothing else to do.

Ceiling: starting Python. Goal: under 0.5 s, without a framework: a help page must not cost an `import torch`.

Run: python benchmarks/cli_help.py [--quick] [--rounds 15]
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Findings, parse_options, publish, ratios, spread, take_turns

HEAVY = (
    "alembic",
    "altair",
    "daft",
    "fastapi",
    "fsspec",
    "httpx",
    "kreuzberg",
    "lance",
    "lancedb",
    "nicegui",
    "numpy",
    "onnxruntime",
    "pandas",
    "pyarrow",
    "pydantic",
    "ray",
    "safetensors",
    "sqlalchemy",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
)
BARE, HELP = "python -c pass", "mainspring --help"
COMMANDS = {
    BARE: (sys.executable, "-c", "pass"),
    HELP: (str(Path(sys.executable).with_name("mainspring")), "--help"),
}
# Ends with the names of all modules, once the help page is printed.
LIST_MODULES = """
import atexit, sys
sys.argv = ["mainspring", "--help"]
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from mainspring.cli import main
main()
"""


@dataclass(frozen=True, slots=True)
class Start:
    """One process from start to end."""

    seconds: float
    cpu_s: float


def starting(command: Sequence[str]) -> Callable[[int], Start]:
    """An arm that runs `command` and drops what it prints."""

    def start(number: int) -> Start:  # noqa: ARG001 every start is alike
        before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        elapsed, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
        return Start(elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return start


def imported() -> set[str]:
    """The top-level modules in the process when the help page is out."""
    done = subprocess.run([sys.executable, "-c", LIST_MODULES], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


def main() -> None:
    options = parse_options(__doc__, rounds=15)
    rounds = 3 if options.quick else options.rounds
    found = take_turns({name: starting(command) for name, command in COMMANDS.items()}, rounds=rounds + 1)
    clock = {name: [start.seconds for start in starts[1:]] for name, starts in found.items()}
    processor = {name: [start.cpu_s for start in starts[1:]] for name, starts in found.items()}
    modules = imported()
    third_party = sorted(modules - set(sys.stdlib_module_names) - {"__main__", "mainspring"})
    seconds = spread(clock[HELP])
    publish(
        Findings(
            benchmark="cli_help",
            headline=f"`mainspring --help` answers in {seconds.median:.2f} s",
            columns=("command", "seconds (quartiles)", "processor seconds"),
            rows=tuple((name, f"{spread(clock[name])}", f"{spread(processor[name])}") for name in COMMANDS),
            numbers={
                "seconds": seconds.median,
                "cpu_seconds": spread(processor[HELP]).median,
                "times_bare_python": spread(ratios(clock[HELP], clock[BARE])).median,
                "heavy_imports": len(modules & set(HEAVY)),
            },
            spec={"rounds": rounds, "imports": third_party, "heavy_imports": sorted(modules & set(HEAVY))},
            samples={"seconds": clock, "cpu_s": processor},
        ),
        packages=("typer", "rich"),
    )


if __name__ == "__main__":
    main()
