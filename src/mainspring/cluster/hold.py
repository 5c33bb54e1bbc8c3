"""What one rank is given of its node, and held to: its devices, cores of its own, a limit of memory."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mainspring.hardware.share import (
    Bounds,
    Claim,
    claim,
    claim_cores,
    device_environment,
    find_slice,
    make_cgroup,
    slice_environment,
)
from mainspring.spec import Job

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Hold:
    """The bounds of a rank, the variables that go with them, and what is given back when it has ended."""

    bounds: Bounds
    environment: dict[str, str]
    claims: list[Claim] = field(default_factory=list)
    group: Path | None = None

    def release(self) -> None:
        """Give back what the rank had. A cgroup in which something still ends stays behind, empty and harmless."""
        for each in self.claims:
            each.release()
        if self.group is not None:
            try:
                self.group.rmdir()
            except OSError as error:
                log.debug("cgroup not removed", extra={"group": str(self.group), "error": str(error)})


def take_hold(job: Job, *, rank: int, bits: int, accelerator: str, given: Mapping[str, str]) -> Hold:
    """What `rank` has on this node: the devices whose `bits` are set, by the names that `given` shows them under."""
    need, claims = job.resources, []
    share = need.devices if 0 < need.devices < 1 else 0.0
    numbers = [number for number in range(bits.bit_length()) if bits >> number & 1]
    environment: dict[str, str] = {}
    if accelerator:
        environment = device_environment(accelerator, numbers, share=share, given=given)
        if share and accelerator == "GPU" and (part := _slice(numbers, share)):
            environment |= slice_environment(part.names[0])
            claims.append(part)
            share = 0.0  # all of the slice is its own
    cores = claim_cores(need.cpus) if need.own_cores else None
    if cores is not None:
        claims.append(cores)
    elif need.own_cores:
        log.warning("no cores of its own", extra={"job": job.id, "rank": rank, "cpus": need.cpus})
    # The driver of a device reserves address space as it likes: limits of data are for ranks without one.
    memory = 0 if numbers else need.memory_bytes
    group = make_cgroup(f"mainspring-{job.id}-{rank}", memory) if memory else None
    bounds = Bounds(
        cores=tuple(int(name) for name in cores.names) if cores else (),
        cgroup=str(group or ""),
        memory_bytes=memory,
        device_share=share,
    )
    return Hold(bounds=bounds, environment=environment, claims=claims, group=group)


def _slice(numbers: Sequence[int], share: float) -> Claim | None:
    found = find_slice(numbers[0], share) if numbers else ()
    return claim("mig", found, 1) if found else None
