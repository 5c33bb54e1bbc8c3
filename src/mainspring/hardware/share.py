"""What keeps ranks apart that share a machine: cores and memory of the host, and slices of a device.

Enforced is what the system offers: whole cores by affinity, claimed with file locks so that agents of different jobs
agree and a killed one leaves no claim; memory by a cgroup v2 where this process may make one, else by RLIMIT_DATA,
which holds each process and not its children together; a share of an NVIDIA device by a MIG instance, else by MPS
(threads and memory) where its daemon runs, and by torch's allocator always. `isolation` says what that leaves open.

Nothing here that names a device has run on one in the suite: variables and NVML's answers are tested, CUDA is not.
"""

import fcntl
import os
import resource
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from mainspring.hardware import limits
from mainspring.hardware.devices.nvml import Nvml
from mainspring.spec import SpecError, Unavailable, spec

VISIBLE = {
    "GPU": "CUDA_VISIBLE_DEVICES",  # ROCm reads it too
    "NPU": "ASCEND_RT_VISIBLE_DEVICES",
    "HPU": "HABANA_VISIBLE_MODULES",
    "TPU": "TPU_VISIBLE_CHIPS",
}
MPS_PIPE = Path("/tmp/nvidia-mps/control")
"""Where the MPS daemon listens when nobody has told it otherwise."""
MIB = 1 << 20


@spec
class Bounds:
    """What one rank is held to, by itself as its first act: cores, a cgroup or else private memory, a share."""

    cores: tuple[int, ...] = ()
    cgroup: str = ""
    memory_bytes: int = 0
    device_share: float = 0.0


class Claim:
    """Things of this machine that nobody else has who asks here, until the end of this process at the latest."""

    def __init__(self, names: tuple[str, ...], locks: Sequence[IO[str]]) -> None:
        self.names = names
        self._locks = locks

    def release(self) -> None:
        """Give them back."""
        for lock in self._locks:
            lock.close()


def claim(kind: str, wanted: Sequence[str], count: int, *, folder: Path | None = None) -> Claim | None:
    """`count` of the `wanted` that are free, neighbours if possible, or None when there are not so many."""
    folder = folder or Path(tempfile.gettempdir()) / f"mainspring-claims-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    held: list[tuple[str, IO[str]]] = []
    for name in wanted:
        if len(held) == count:
            break
        lock = (folder / f"{kind}-{name.replace('/', '-')}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            held.append((name, lock))
    taken = Claim(tuple(name for name, _ in held), [lock for _, lock in held])
    if len(held) == count:
        return taken
    taken.release()
    return None


def claim_cores(cpus: float, *, folder: Path | None = None) -> Claim | None:
    """Whole cores for a rank that reserved whole cpus; None for a part of one, or where there are not so many left."""
    if cpus < 1 or cpus != int(cpus):
        return None
    return claim("core", [str(core) for core in sorted(os.sched_getaffinity(0))], int(cpus), folder=folder)


def device_environment(
    kind: str,
    numbers: Sequence[int],
    *,
    share: float,
    memory_bytes: int = 0,
    given: Mapping[str, str],
    mps: Path = MPS_PIPE,
) -> dict[str, str]:
    """The variables that show a rank its devices, and hold it to `share` of one where MPS runs.

    `numbers` count the devices that this machine's Ray was given, `memory_bytes` is what the device has in all, and
    `given` is the environment of the process that starts ranks. Raises `SpecError` for a kind nobody knows.
    """
    if kind not in VISIBLE:
        raise SpecError(f"no variable is known that shows a process its {kind}", hint=f"known: {', '.join(VISIBLE)}")
    names = [name for name in given.get(VISIBLE[kind], "").split(",") if name]
    shown = [names[number] if number < len(names) else str(number) for number in numbers]
    found = {VISIBLE[kind]: ",".join(shown)}
    if kind != "GPU":
        return found
    found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the numbers of NVML, by which health and slices are known
    if 0 < share < 1 and mps.exists():
        found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{100 * share:g}"
        if memory_bytes:
            found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={int(share * memory_bytes) // MIB}M"
    return found


def slice_environment(uuid: str) -> dict[str, str]:
    """The variable that shows a rank one MIG instance, in place of its device."""
    return {VISIBLE["GPU"]: uuid}


def find_slice(number: int, share: float, *, nvml: Nvml | None = None) -> tuple[str, ...]:
    """The MIG instances of NVML's device `number` with at least `share` of its memory, the smallest first."""
    try:
        session = nvml or Nvml()
        device = session.handle_at(number)
        total, _ = session.memory(device)
        sizes = [(session.memory(part)[0], session.uuid(part)) for part in session.slices(device)]
    except Unavailable:
        return ()
    # An instance of two sevenths has a quarter of the memory: a share is met within a twentieth.
    return tuple(uuid for size, uuid in sorted(sizes) if size >= (share - 0.05) * total)


def make_cgroup(name: str, memory_bytes: int, *, root: Path = limits.ROOT) -> Path | None:
    """A cgroup (v2) that may hold `memory_bytes`; None where this process may not make one."""
    parent = _own_cgroup(root)
    if parent is None:
        return None
    group = parent / name
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.max").write_text(str(memory_bytes))
        with suppress(OSError):  # a kernel without swap accounting
            (group / "memory.swap.max").write_text("0")
    except OSError:
        return None
    return group


def apply(bounds: Bounds) -> None:
    """Hold this process, and what it starts, to `bounds`."""
    if bounds.cores:
        os.sched_setaffinity(0, bounds.cores)
    if bounds.cgroup:
        (Path(bounds.cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    elif bounds.memory_bytes:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = bounds.memory_bytes if most == resource.RLIM_INFINITY else min(bounds.memory_bytes, most)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))
    if 0 < bounds.device_share < 1:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(bounds.device_share, 0)


def isolation(vendors: Sequence[str], *, root: Path = limits.ROOT, mps: Path = MPS_PIPE) -> tuple[str, ...]:
    """What keeps ranks on this machine apart, and what does not, a sentence each."""
    said = [
        "cores: a rank that asks for cores of its own has them to itself among those that do; without, and for caches "
        "and memory bandwidth always, ranks share",
        "memory: a rank with a limit, and all it starts, are held to it by a cgroup"
        if _own_cgroup(root)
        else "memory: each process of a rank with a limit is held to it by RLIMIT_DATA; its children count apart, "
        "shared memory and files not at all, as this process may make no cgroup",
        "not isolated: disk, network, and the kernel",
    ]
    if "nvidia" in vendors:
        said.append(
            "shares of a device: MPS limits threads and memory, one client's fatal fault can end the others"
            if mps.exists()
            else "shares of a device: torch's allocator keeps to its share of memory, and nothing else does; kernels "
            "take turns and are not limited (start nvidia-cuda-mps-control, or cut the device with MIG)"
        )
    return tuple(said)


def _own_cgroup(root: Path) -> Path | None:
    """This process's cgroup (v2), if its children can be limited in memory."""
    line = next((row for row in _lines(root / "proc/self/cgroup") if row.startswith("0::")), "")
    folder = root / "sys/fs/cgroup" / line.removeprefix("0::").lstrip("/")
    able = "memory" in " ".join(_lines(folder / "cgroup.subtree_control")).split()
    return folder if line and able and os.access(folder, os.W_OK) else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []
