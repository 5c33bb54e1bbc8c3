"""What a device reaches, by asking it: short matrix products and copies, remembered on disk.

A CPU's product name says little about what a virtual machine or a container may use of it, so its figures are
measured (about a second, once per machine and torch version, best of five so that a busy moment does not count).
Without torch the peaks are derived from the instruction sets in /proc/cpuinfo, and `source` says so.
"""

import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mainspring.spec import Link, Operation, OperationCost, SpecError, load_settings, spec

log = logging.getLogger(__name__)

SIDE = 2048  # of the square matrices: 17 GFLOP a product, 54 ms in fp32 on two Sapphire Rapids cores
COPY_BYTES = 256 * 1024**2
LOOPBACK_BYTES = 16 * 1024**2
# What gloo's operations reach of that, all ranks of a machine together, and the least a message takes: medians of
# `plan calibrate` on two cores, where a bare connection carries 5.5 GB/s.
GLOO_SHARES: dict[Operation, float] = {
    "all_reduce": 0.9,
    "all_gather": 0.4,
    "reduce_scatter": 0.3,
    "all_to_all": 0.8,
    "send": 1.9,
}
GLOO_S = 1.2e-4
REPEATS = 5
ENOUGH_S = 1.0  # a machine so busy that repeats take longer than this together is measured again when it is calmer
BUSY = 1.5  # runnable processes per core, from which on a measurement is not trusted for ever
# FLOP per core and cycle with two FMA units, by instruction set (Intel Optimization Manual, section 2;
# amx: one 16x16x64-byte tile product in 16 cycles).
FP32_PER_CYCLE = (("avx512f", 64), ("avx2", 32), ("avx", 16), ("asimd", 16))
BF16_PER_CYCLE = (("amx_bf16", 2048), ("avx512_bf16", 128))
INT8_PER_CYCLE = (("amx_int8", 4096), ("avx512_vnni", 256), ("avx_vnni", 128), ("avx512f", 128), ("avx2", 64))


@spec
class Peaks:
    """Rates one device reaches, and how that is known."""

    fp32_flops_per_s: float
    bf16_flops_per_s: float
    int8_ops_per_s: float
    memory_bytes_per_s: float
    source: str


def cpu_peaks(cores: int) -> Peaks:
    """The rates of this machine's `cores` CPU cores: measured when torch is installed, else derived."""
    installed = _torch_version()
    if installed is None:
        return derived_peaks(Path("/proc/cpuinfo").read_text("utf-8"), cores=cores)
    key = {"kind": "cpu", "cpu": cpu_model(), "cores": cores, "torch": installed}
    return Peaks(**remembered(key, lambda: asdict(torch_peaks("cpu", threads=cores))))


def accelerator_peaks(device: str, name: str) -> Peaks:
    """The measured rates of the accelerator `device` (as torch names it), which calls itself `name`."""
    key = {"kind": "accelerator", "name": name, "torch": _torch_version()}
    return Peaks(**remembered(key, lambda: asdict(torch_peaks(device))))


def torch_peaks(device: str, *, threads: int = 0) -> Peaks:
    """Measure `device` through torch: square products in three types and a copy. `threads` of 0 leaves them be."""
    import torch

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        rates = {kind: _product_rate(device, kind) for kind in ("float32", "bfloat16", "int8")}
        source = torch.empty(COPY_BYTES // 4, device=device).fill_(1)
        target = torch.empty_like(source)
        copied_s = _best_s(lambda: target.copy_(source), device)
    finally:
        torch.set_num_threads(before)
    how = f"measured: {SIDE}-cubed products and a {COPY_BYTES >> 20} MiB copy, torch {torch.__version__}"
    return Peaks(
        fp32_flops_per_s=rates["float32"],
        bf16_flops_per_s=rates["bfloat16"],
        int8_ops_per_s=rates["int8"],
        memory_bytes_per_s=2 * COPY_BYTES / copied_s,
        source=f"{how}, {threads} threads" if threads else how,
    )


def derived_peaks(cpuinfo: str, *, cores: int) -> Peaks:
    """Peaks from instruction sets and clock in the text of /proc/cpuinfo, and a one-thread memory copy.

    A type without instructions of its own runs at the fp32 rate. Raises `SpecError` when neither instruction sets
    nor clock can be read, because a guess would make every plan on this machine wrong.
    """
    fields = dict(_cpuinfo_fields(cpuinfo))
    flags = frozenset(fields.get("flags", fields.get("Features", "")).split())
    hertz = float(fields.get("cpu MHz", "0")) * 1e6
    fp32 = _per_cycle(FP32_PER_CYCLE, flags)
    if not hertz or not fp32:
        raise SpecError(
            "cannot tell from /proc/cpuinfo how fast this CPU is", hint="install torch: then it is measured"
        )
    source, target = bytearray(COPY_BYTES), memoryview(bytearray(COPY_BYTES))

    def copy() -> None:
        target[:] = source

    return Peaks(
        fp32_flops_per_s=fp32 * hertz * cores,
        bf16_flops_per_s=(_per_cycle(BF16_PER_CYCLE, flags) or fp32) * hertz * cores,
        int8_ops_per_s=(_per_cycle(INT8_PER_CYCLE, flags) or fp32) * hertz * cores,
        memory_bytes_per_s=2 * COPY_BYTES / _best_s(copy, "cpu"),
        source=f"derived from /proc/cpuinfo: {cores} cores at {hertz / 1e9:.2f} GHz; memory by one-thread copy",
    )


def loopback() -> Link:
    """The link between processes of this machine: TCP over 127.0.0.1, which is what gloo uses."""
    key = {"kind": "loopback", "cpu": cpu_model(), "cores": os.cpu_count()}
    figures = remembered(key, _measure_loopback)
    costs = tuple(
        OperationCost(operation=operation, bytes_per_s=share * figures["bytes_per_s"], latency_s=GLOO_S)
        for operation, share in GLOO_SHARES.items()
    )
    return Link(name="loopback", **figures, costs=costs)


def cpu_model() -> str:
    """What /proc/cpuinfo calls the processor."""
    fields = dict(_cpuinfo_fields(Path("/proc/cpuinfo").read_text("utf-8")))
    return fields.get("model name") or fields.get("Processor") or os.uname().machine


def remembered(key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures measured earlier for exactly `key`, or measure and keep them under the platform's home.

    What was measured while other processes wanted the cores is measured again once fewer do. A cache that cannot be
    read or written costs a second measurement and nothing else.
    """
    text = json.dumps(key, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = load_settings().home_path / "hardware" / f"{name}.json"
    try:
        kept = json.loads(path.read_text("utf-8"))
        if kept["key"] == key and not _calmer_than(kept.get("load", 0.0)):
            return kept["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        log.debug("no usable hardware measurement", extra={"path": str(path)})
    load = _load()
    figures = measure()
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"key": key, "figures": figures, "load": load}, indent=1), "utf-8")
        part.replace(path)
    except OSError as error:
        log.warning("hardware measurement not kept", extra={"path": str(path), "reason": str(error)})
    return figures


def _load() -> float:
    """Runnable processes per core, over the last minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _calmer_than(load: float) -> bool:
    """Whether a machine that was busy at `load` has less than half as much to do now."""
    return load > BUSY and _load() < load / 2


def _product_rate(device: str, kind: str) -> float:
    """Operations per second of a square matrix product; 0 when torch has no such product on the device."""
    import torch

    dtype = getattr(torch, kind)
    left = torch.ones(SIDE, SIDE, device=device).to(dtype)
    right = torch.ones(SIDE, SIDE, device=device).to(dtype)
    # The only int8 product torch has; the operator's own name, because torch exports no public one.
    product = torch.ops.aten._int_mm.default if dtype is torch.int8 else torch.mm  # noqa: SLF001
    try:
        return 2 * SIDE**3 / _best_s(lambda: product(left, right), device)
    except (RuntimeError, NotImplementedError) as error:
        log.info("no matrix product", extra={"device": device, "dtype": kind, "reason": str(error)})
        return 0.0


def _best_s(work: Callable[[], object], device: str) -> float:
    """The shortest of some repeats, of one at least; a warm-up comes first."""
    best, begun = float("inf"), time.perf_counter()
    for repeat in range(REPEATS + 1):
        start = time.perf_counter()
        if repeat > 1 and start - begun > ENOUGH_S:
            break
        work()
        if device != "cpu":
            import torch

            torch.accelerator.synchronize()
        if repeat:
            best = min(best, time.perf_counter() - start)
    return best


def _measure_loopback() -> dict[str, float]:
    """Bytes per second one way and half of a round trip of one byte, over a local TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips: list[float] = []
        for _ in range(200):
            start = time.perf_counter()
            near.sendall(b"?")
            far.recv(1)
            far.sendall(b"!")
            near.recv(1)
            trips.append(time.perf_counter() - start)
        payload = bytes(LOOPBACK_BYTES)

        def send() -> None:
            reader = threading.Thread(target=_drain, args=(far, LOOPBACK_BYTES))
            reader.start()
            near.sendall(payload)
            reader.join()

        seconds = _best_s(send, "cpu")
    return {"bytes_per_s": LOOPBACK_BYTES / seconds, "latency_s": sorted(trips)[len(trips) // 2] / 2}


def _drain(connection: socket.socket, count: int) -> None:
    buffer = bytearray(1 << 20)
    while count > 0:
        got = connection.recv_into(buffer)
        if not got:
            return
        count -= got


def _cpuinfo_fields(text: str) -> list[tuple[str, str]]:
    """`name: value` of the first processor."""
    first = text.strip().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _per_cycle(table: tuple[tuple[str, int], ...], flags: frozenset[str]) -> int:
    return next((rate for flag, rate in table if flag in flags), 0)


def _torch_version() -> str | None:
    try:
        return version("torch")
    except PackageNotFoundError:
        return None
