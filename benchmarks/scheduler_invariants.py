"""Do the scheduler's rules hold after every decision, in a hundred thousand random histories?

A history draws a quota tree of up to three levels with minima, maxima, borrow and lend limits and weights, a cluster,
and a dozen events: gangs of several kinds come and go, checkpoint, quotas are gathered, and on half of the clusters
nodes and devices fail. After each decision `mainspring.testing.histories.check` looks whether the books are what the
gangs hold, nobody is above the capacity or a maximum, nobody waits who has quota and room, and the tree is as it was
planted when a gather is over; a decision on the state reached must find nothing to do. On the half without failures
shares must be weighted max-min to the unit, and nobody within his share may wait beside one who could be stopped for
him. Of every tenth history each event is played again and must give the same decisions.

Ceiling: none; one violation is one too many.

Run: python benchmarks/scheduler_invariants.py [--quick] [--histories 100000] [--workers 2]
"""

import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from random import Random

from mainspring.testing.histories import check, check_replay, draw_events, draw_state
from measure import Findings, parse_options, publish

STEPS, REPLAYED, PART = 12, 10, 500


def live(seed: int) -> tuple[Counter[str], str]:
    """One history: how many decisions of each kind, and the rule that was broken."""
    draw, simple = Random(seed), seed % 2 == 0
    state = draw_state(draw, nodes=1 if simple else 4)
    kinds: Counter[str] = Counter()
    for events, outcome in draw_events(draw, state, steps=STEPS, simple=simple):
        kinds.update(decision.kind for decision in outcome.decisions)
        try:
            check(state, outcome, simple=simple)
            if seed % REPLAYED == 0:
                check_replay(state, events, outcome)
        except AssertionError as broken:
            return kinds, f"seed {seed}: {broken}"
        state = outcome.state
    return kinds, ""


def live_all(seeds: range) -> tuple[Counter[str], list[str], float]:
    """Many histories in one process: decisions by kind, what was broken, and processor seconds."""
    started = time.process_time()
    kinds: Counter[str] = Counter()
    broken: list[str] = []
    for seed in seeds:
        found, violation = live(seed)
        kinds += found
        broken += [violation] if violation else []
    return kinds, broken, time.process_time() - started


def main() -> None:
    options = parse_options(__doc__, histories=100_000, workers=2)
    count = 100 if options.quick else options.histories
    parts = [range(first, min(count, first + PART)) for first in range(0, count, PART)]
    with ProcessPoolExecutor(options.workers) as pool:
        found = list(pool.map(live_all, parts))
    kinds = sum((each[0] for each in found), Counter[str]())
    broken = [violation for each in found for violation in each[1]]
    seconds = sum(each[2] for each in found)
    publish(
        Findings(
            benchmark="scheduler_invariants",
            headline=f"{len(broken)} violations in {count:,} histories with {sum(kinds.values()):,} decisions",
            columns=("histories", "started", "stopped", "told to wait", "refused", "violations", "cpu s"),
            rows=(
                (
                    f"{count:,}",
                    *(f"{kinds[kind]:,}" for kind in ("start", "evict", "wait", "refuse")),
                    str(len(broken)),
                    f"{seconds:.0f}",
                ),
            ),
            numbers={"histories": count, "violations": len(broken), "decisions": sum(kinds.values())},
            spec={"steps": STEPS},
            samples={"broken": broken[:20]},
        ),
        packages=("numpy",),
    )


if __name__ == "__main__":
    main()
