"""By how much does choosing plan and place together beat choosing them one after the other?

Training jobs of 0.35 to 7 billion parameters arrive over hours at a cluster of three kinds of device. Each has a menu
that the planner itself has made: for each kind and each power of two of devices the best plan, with its tokens per
second, watts and price. `together` lets the scheduler take any offer and change it at checkpoints. The others choose
the plan first, as one does without knowing the cluster: the fastest of all, the one that does most per device, the
cheapest, or so many devices, of the kind that is fastest or of any kind (the plan for the kind that comes); then the
same scheduler places it, with the same queues and backfill. The comparison is with the best of these in hindsight. Each
trace is drawn anew from a seed; jobs are the same for all arms. Times are virtual, and a change costs a minute.

Ceiling: with every job at its best speed per device and no device idle, the work of a trace takes `ideal` hours.

Run: python benchmarks/scheduler_menus.py [--quick] [--jobs 80] [--traces 3]
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from mainspring.cluster.schedule.state import State, build_state
from mainspring.cluster.simulate.elastic import Played, Work, play
from mainspring.hardware.topology import build_cluster
from mainspring.models.profile import profile_decoder
from mainspring.plan.menu import offers_of
from mainspring.plan.search import menu
from mainspring.spec import (
    ClusterFile,
    DecoderConfig,
    Gang,
    LinkEntry,
    Machine,
    NodeEntry,
    Offer,
    Queue,
    Rules,
    TrainConfig,
)
from measure import Findings, parse_options, publish

HOUR_MS = 3_600_000
KINDS = {"H100-SXM5-80GB": 4, "A100-SXM4-40GB": 8, "L4": 8}  # nodes of eight
PRICE = {"H100-SXM5-80GB": 4.92, "A100-SXM4-40GB": 1.84, "L4": 0.70}  # US dollars per device and hour
MODELS = {"350m": (1024, 24, 16), "1.3b": (2048, 24, 16), "3b": (2560, 32, 32), "7b": (4096, 32, 32)}
BATCHES = (16, 64, 256)
SEQ_LEN = 2048
SAVE_MS, NEVER_MS = 15 * 60_000, 1 << 50
SHARES = {"350m": 0.4, "1.3b": 0.3, "3b": 0.2, "7b": 0.1}  # small jobs are many, as in published traces
MEDIAN_DEVICE_HOURS, SPREAD = 6.0, 1.3  # log-normal, on the kind that suits the job best
LOAD = 1.1  # work that arrives over what the cluster could do in the same time
Choose = Callable[[Sequence[Offer]], tuple[Offer, ...]]
COUNTS = (1, 2, 4, 8, 16)


def menus(batches: Sequence[int]) -> dict[tuple[str, int], tuple[Offer, ...]]:
    """Every model and batch of `batches` with the planner's offers for every kind of device."""
    link = LinkEntry(gigabytes_per_s=25)
    found: dict[tuple[str, int], tuple[Offer, ...]] = {}
    for name, (hidden, layers, heads) in MODELS.items():
        ffn = hidden * 8 // 3 // 64 * 64
        config = DecoderConfig(
            vocab=32_000, hidden=hidden, layers=layers, heads=heads, kv_heads=heads, ffn=ffn, context=SEQ_LEN
        )
        model = profile_decoder(config, seq_len=SEQ_LEN, name=name, precision="bf16")
        for batch in batches:
            train = TrainConfig(steps=1, seq_len=SEQ_LEN, global_batch=batch, precision="bf16")
            offers: list[Offer] = []
            for kind, nodes in KINDS.items():
                entry = NodeEntry(device=kind, devices=8, count=min(4, nodes), price_usd_per_hour=PRICE[kind])
                cluster = build_cluster(ClusterFile(name=kind, nodes=(entry,), link=link))
                offers += offers_of(menu(model, cluster, train), device=kind)
            found[name, batch] = tuple(offers)
    return found


def per_device(offer: Offer) -> float:
    return offer.speed / offer.ranks


def fastest(menu: Sequence[Offer]) -> tuple[Offer, ...]:
    return (max(menu, key=lambda offer: (offer.speed, -offer.ranks)),)


def thriftiest(menu: Sequence[Offer]) -> tuple[Offer, ...]:
    return (max(menu, key=lambda offer: (round(per_device(offer), 1), -offer.ranks)),)


def cheapest(menu: Sequence[Offer]) -> tuple[Offer, ...]:
    return (min(menu, key=lambda offer: (offer.milli_usd_per_hour / offer.speed, offer.ranks)),)


def of_any_kind(ranks: int) -> Choose:
    """So many devices, or as few as hold it, of whichever kind that can."""

    def choose(menu: Sequence[Offer]) -> tuple[Offer, ...]:
        wanted = max(ranks, min(each.ranks for each in menu))
        most = max(each.ranks for each in menu if each.ranks <= wanted)
        return tuple(offer for offer in menu if offer.ranks == most)

    return choose


def of_one_kind(ranks: int) -> Choose:
    """The same, of the kind on which it is fastest."""
    return lambda menu: fastest(of_any_kind(ranks)(menu))


APART: dict[str, Choose] = {
    "the fastest plan, then a place": fastest,
    "most work per device, then a place": thriftiest,
    **{f"{ranks} of the fastest kind, then a place": of_one_kind(ranks) for ranks in COUNTS},
    **{f"{ranks} of any kind, then a place": of_any_kind(ranks) for ranks in COUNTS},
    "the cheapest plan, then a place": cheapest,
}


def draw(known: dict[tuple[str, int], tuple[Offer, ...]], *, jobs: int, seed: int) -> list[Work]:
    """A trace: Poisson arrivals at a load that the cluster cannot quite follow."""
    random = Random(seed)
    devices = 8 * sum(KINDS.values())
    works: list[Work] = []
    batches = sorted({batch for _, batch in known})
    at_ms = 0.0
    for number in range(jobs):
        name = random.choices(list(SHARES), list(SHARES.values()))[0]
        offers = known[name, random.choice(batches)]
        hours = MEDIAN_DEVICE_HOURS * math.exp(SPREAD * random.gauss(0, 1))
        amount = round(hours * HOUR_MS * max(per_device(offer) for offer in offers))
        gang = Gang(id=f"j{number:04d}-{name}", queue=random.choice(("a", "b")), request=offers[0].request, menu=offers)
        works.append(Work(at_ms=round(at_ms), gang=gang, amount=amount))
        mean_hours = MEDIAN_DEVICE_HOURS * math.exp(SPREAD**2 / 2)
        at_ms += random.expovariate(1.0) * mean_hours * HOUR_MS / (devices * LOAD / ideal_ratio(known))
    return works


def ideal_ratio(known: dict[tuple[str, int], tuple[Offer, ...]]) -> float:
    """How many devices of this cluster one device of each job's best kind is worth, on average."""
    ratios: list[float] = []
    for offers in known.values():
        best = max(map(per_device, offers))
        mean = sum(
            nodes * max((per_device(o) for o in offers if o.request.models == (kind,)), default=0.0)
            for kind, nodes in KINDS.items()
        ) / sum(KINDS.values())
        ratios.append(best / mean)
    return statistics.mean(ratios)


def cluster(aim: str) -> State:
    machines = [
        Machine(name=f"{kind}-{n}", cpu_milli=64_000, memory_mib=1 << 19, devices=8, model=kind)
        for kind, nodes in KINDS.items()
        for n in range(nodes)
    ]
    rules = Rules(shield_ms=10 * 60_000, ageing_ms=0, restart_ms=60_000, aim=aim)  # type: ignore[arg-type]
    return build_state(machines, (Queue(name="a"), Queue(name="b")), rules=rules)


def apart(works: Sequence[Work], choose: Choose) -> list[Work]:
    """The same jobs, each with the plan that it has chosen for itself."""
    found: list[Work] = []
    for work in works:
        offers = choose(work.gang.menu)
        request = replace(offers[0].request, models=tuple(model for each in offers for model in each.request.models))
        gang = replace(work.gang, menu=(), request=request, ranks=offers[0].ranks)
        found.append(replace(work, gang=gang, offers=offers))
    return found


def arms(works: Sequence[Work]) -> dict[str, Played]:
    found = {"together": play(cluster("goodput"), works, save_every_ms=SAVE_MS)}
    found["together, never changed"] = play(cluster("goodput"), works, save_every_ms=NEVER_MS)
    found["together, for cost"] = play(cluster("cost"), works, save_every_ms=SAVE_MS)
    found["together, for energy"] = play(cluster("energy"), works, save_every_ms=SAVE_MS)
    for name, choose in APART.items():
        found[name] = play(cluster("goodput"), apart(works, choose), save_every_ms=SAVE_MS)
    return found


def main() -> None:
    options = parse_options(__doc__, jobs=80, traces=3)
    jobs, traces = (24, 1) if options.quick else (options.jobs, options.traces)
    known = menus(BATCHES[:1] if options.quick else BATCHES)
    started = time.process_time()
    measured: dict[str, list[tuple[float, float, float, float, float, int]]] = {}
    for seed in range(traces):
        for name, played in arms(draw(known, jobs=jobs, seed=seed)).items():
            times = sorted(played.completion_ms())
            measured.setdefault(name, []).append(
                (
                    statistics.mean(times) / HOUR_MS,
                    times[int(0.9 * len(times))] / HOUR_MS,
                    played.makespan_ms / HOUR_MS,
                    played.watt_ms / HOUR_MS / 1e6,
                    played.milli_usd_ms / HOUR_MS / 1000,
                    played.starts,
                )
            )
    means = {name: [statistics.mean(column) for column in zip(*rows, strict=True)] for name, rows in measured.items()}
    best = min(APART, key=lambda name: means[name][0])
    gains = [1 - mine[0] / theirs[0] for mine, theirs in zip(measured["together"], measured[best], strict=True)]
    gain = 1 - means["together"][0] / means[best][0]
    span = 1 - means["together"][2] / min(means[name][2] for name in APART)
    dear, cheap = means["together"], means["together, for cost"]
    publish(
        Findings(
            benchmark="scheduler_menus",
            headline=f"jobs end {gain:.0%} sooner on average than with the best way to choose plan and place apart",
            columns=("plan and place", "completion, h", "9 of 10 within, h", "makespan, h", "MWh", "USD", "starts"),
            rows=tuple(
                (
                    name,
                    f"{row[0]:.2f}",
                    f"{row[1]:.2f}",
                    f"{row[2]:.1f}",
                    f"{row[3]:.2f}",
                    f"{row[4]:,.0f}",
                    f"{row[5]:.0f}",
                )
                for name, row in means.items()
            ),
            numbers={
                "completion_gain": gain,
                "least_gain": min(gains),
                "makespan_gain": span,
                "cost_saved": 1 - cheap[4] / dear[4],
                "cpu_s": time.process_time() - started,
            },
            spec={"jobs": jobs, "traces": traces, "load": LOAD},
            samples=dict(measured),
        ),
        packages=("numpy",),
    )


if __name__ == "__main__":
    main()
