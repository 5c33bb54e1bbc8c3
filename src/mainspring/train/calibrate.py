"""What this machine needs for the work that plans count on: steps of small decoders, updates, collectives, plans.

Each measurement is made of what `train` runs: the package's own decoder with its loss, fused Adam, the process group's
collectives, and the executor itself. On a host all ranks measure at once, in processes of their own, because that is
how they will train: they share its memory, and a rank's single thread wastes nothing on waiting for another. Arithmetic
is then taken from the processor's own clock, which neighbours do not move.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mainspring.hardware import devices
from mainspring.plan.calibrate import Exchanged, Passed, Stepped, Updated, fit_device, fit_host, fit_link
from mainspring.spec import Artifact, Calibration, Device, Failed, Node, Progress, SpecError, silent
from mainspring.store import Store, parse
from mainspring.train.timed import MODEL, facts, planned, typical_s, works

PATIENCE_S = 300.0
TURNS = 3  # in which everything is measured, so that a busy moment meets all alike; the best counts
SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 23)  # bytes
MOST_RANKS = 4


@dataclass(frozen=True, slots=True)
class Heard:
    """What processes of this machine found together: collectives, and where it is a host, arithmetic and plans."""

    exchanged: tuple[Exchanged, ...]
    found: tuple[Passed | Updated, ...]
    stepped: tuple[Stepped, ...]


def calibrate(node: Node, *, scratch: Path, progress: Progress = silent) -> Calibration:
    """Figures of `node`, which must be this machine, from measurements of about a minute.

    Raises `SpecError` when it has no device, and `Failed` when the processes of an exchange could not talk.
    """
    if not node.devices:
        raise SpecError(f"{node.name} has no device to measure")
    here = node.devices[0]
    large = here.vendor != "cpu"
    ranks = len(node.devices) if large else node.cpu_cores
    ranks = 1 << min(ranks, MOST_RANKS).bit_length() - 1  # a power of two, which meshes are
    if large:
        progress(0.0, "forward and backward")
        found = _alone()
        progress(0.8, "collectives")
        heard = listen(ranks, node, scratch=scratch, turns=TURNS) if ranks > 1 else Heard((), (), ())
    else:
        progress(0.0, f"{ranks} ranks at once")
        heard = listen(ranks, node, scratch=scratch, turns=TURNS)
        found = heard.found
    device, samples = fit_device(
        here,
        [each for each in found if isinstance(each, Passed)],
        [each for each in found if isinstance(each, Updated)],
    )
    one = Calibration(machine=node.name, probed=here.name, device=_named(device), ranks=ranks, samples=samples)
    if ranks < 2:
        return one
    link, more = fit_link(heard.exchanged, name=node.link.name)
    if heard.stepped:
        device, most = fit_host(device, link, heard.stepped, cores=node.cpu_cores)
        more = (*more, *most)
    return replace(one, device=_named(device), link=link, samples=(*samples, *more))


def publish_calibration(store: Store, node: Node, *, run: str = "", progress: Progress = silent) -> Artifact:
    """Calibrate this machine, `node`, and publish what was found as `calibration:<machine>`."""
    with store.scratch() as folder:
        found = calibrate(node, scratch=folder, progress=progress)
        path = folder / "calibration.json"
        path.write_text(parse.to_json(found), "utf-8")
        meta = {"device": found.device.name, "error": round(found.mean_error, 4)}
        return store.publish("calibration", _name_of(node), path, meta=meta, run=run)


def _name_of(node: Node) -> str:
    """The machine's name with what an artifact's name may not have replaced."""
    return re.sub(r"[^a-z0-9._-]+", "-", node.name.lower()).strip("-._") or "machine"


def _named(device: Device) -> Device:
    before = device.source.rpartition("before: ")[2]
    return replace(device, source=f"calibrated on this machine with torch {torch.__version__}; before: {before}")


def _alone() -> tuple[Passed | Updated, ...]:
    """Passes and updates on one accelerator."""
    device = torch.device(devices.torch_device(0))
    timed = works(device, large=True)
    least = [math.inf] * len(timed)
    for _ in range(TURNS):
        least = [min(s, typical_s(work, device)) for s, work in zip(least, timed, strict=True)]
    return facts(least, large=True, ranks=1)


def listen(ranks: int, node: Node, *, scratch: Path, turns: int) -> Heard:
    """What `ranks` processes of `node`, this machine, measure together; they meet in the folder `scratch`."""
    host = node.devices[0].vendor == "cpu"
    plans = planned(node, ranks=ranks) if host and ranks > 1 else ()
    order, told = scratch / "order.json", scratch / "told.json"
    texts = [parse.to_json(plan) for plan in plans]
    order.write_text(json.dumps({"turns": turns if host else 0, "plans": texts}), "utf-8")
    _run(ranks, [str(scratch / "meeting"), str(order), str(told), str(ranks)])
    rows = json.loads(told.read_text("utf-8"))
    return Heard(
        exchanged=tuple(
            Exchanged(operation=operation, ranks=ranks, payload_bytes=size, seconds=seconds)
            for operation, size, seconds in rows["exchanged"]
        ),
        found=facts(rows["works"], large=False, ranks=ranks) if host else (),
        stepped=tuple(Stepped(MODEL, plan, seconds) for plan, seconds in zip(plans, rows["steps"], strict=True)),
    )


def _run(ranks: int, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "mainspring.train.exchange", *arguments]
    started = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    try:
        for process in started:
            _, said = process.communicate(timeout=PATIENCE_S)
            if process.returncode:
                last = (said.strip().splitlines() or ["nothing was said"])[-1]
                raise Failed(f"measuring among {ranks} processes failed: {last}")
    except subprocess.TimeoutExpired as error:
        raise Failed(f"measurements among {ranks} processes took longer than {PATIENCE_S:.0f} s") from error
    finally:
        for process in started:
            process.kill()
            process.communicate()
