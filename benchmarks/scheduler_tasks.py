"""How many small tasks a second does one gang get through in blocks, against a decision for every task?

Two ranks, each a process of its own as in `mainspring job map`, call a function that returns at once, so that all the
time is the machinery's: with blocks of some two seconds' work, and with blocks of one task, which is a question and an
answer for each. Both
count each task's answer in a file. What the scheduler's own decisions cost per task is in `scheduler_speed`.

Ceiling: writing one JSON line of an answer and calling the function, some 2 us a task on one core.

Run: python benchmarks/scheduler_tasks.py [--quick] [--tasks 200000] [--rounds 3]
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from measure import ROOT, Findings, parse_options, publish, spread

RANKS = 2
RANK = """
import sys
from mainspring.cluster.tasks import work
from mainspring.spec import Task
port, folder = sys.argv[1:3]
rank, world, tasks, aim_ms = map(int, sys.argv[3:])
where = {"run_dir": folder, "master": f"127.0.0.1:{port}"}
task = Task(job_id="b", rank=rank, world=world, local_rank=rank, local_world=world, **where)
print("ready", flush=True)
sys.stdin.readline()
work(task, {"entry": "builtins:abs", "items": list(range(tasks)), "blocks": {"aim_ms": aim_ms}})
"""


def per_second(tasks: int, *, aim_ms: int, port: int) -> float:
    """Tasks a second of one gang, from when its ranks are up until the last has left."""
    with tempfile.TemporaryDirectory() as folder:
        order = [sys.executable, "-c", RANK, str(port), folder]
        ranks = [
            subprocess.Popen(
                [*order, str(rank), str(RANKS), str(tasks), str(aim_ms)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for rank in range(RANKS)
        ]
        for rank in ranks:
            assert rank.stdout is not None
            rank.stdout.readline()
        began_s = time.perf_counter()
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
        for rank in ranks:
            rank.communicate(timeout=300)
        seconds = time.perf_counter() - began_s
        lines = Counter(line for file in Path(folder).glob("answers-*.jsonl") for line in file.open())
        assert len(lines) == tasks == sum(lines.values()), "a task was lost, or done twice"
    return tasks / seconds


def main() -> None:
    options = parse_options(__doc__, tasks=200_000, rounds=3)
    tasks, rounds = (2000, 1) if options.quick else (options.tasks, options.rounds)
    blocks, singles = [], []
    for number in range(rounds):
        port = 20_000 + (time.monotonic_ns() // 1000 + 7 * number) % 20_000
        blocks.append(per_second(tasks, aim_ms=2000, port=port))
        singles.append(per_second(max(1000, tasks // 20), aim_ms=0, port=port + 1))
    fast, slow = spread(blocks), spread(singles)
    publish(
        Findings(
            benchmark="scheduler_tasks",
            headline=f"{fast.median:,.0f} tasks a second in blocks on two ranks, {slow.median:,.0f} one by one",
            columns=("arm", "tasks a second, median (quartiles)"),
            rows=(("blocks of about 2 s", str(fast)), ("one at a time", str(slow))),
            numbers={"blocks_per_s": fast.median, "singles_per_s": slow.median, "ratio": fast.median / slow.median},
            spec={"tasks": tasks, "rounds": rounds, "ranks": RANKS},
            samples={"blocks": blocks, "one at a time": singles},
        ),
        packages=(),
    )


if __name__ == "__main__":
    main()
