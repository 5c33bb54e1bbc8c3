"""A small cluster in the books, as a driver would have written it: two teams, a rack that is full, and who waits."""

from collections.abc import Sequence
from pathlib import Path

from mainspring.cluster.books import write_machines
from mainspring.spec import Job, JobRecord, Machine, Placement, Resources
from mainspring.store import Store

CLUSTER, DRIVER = "c0ffee00c0ffee00", "driver-of-the-books"
QUOTAS = """
[[queues]]
name = "org"
quotas = [{ resource = "devices", min = 48 }]

[[queues]]
name = "research"
parent = "org"
weight = 2
quotas = [{ resource = "devices", min = 24, max = 40 }]

[[queues]]
name = "product"
parent = "org"
quotas = [{ resource = "devices", min = 16, borrow = 8 }]
"""
RUNNING: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("pretrain", "research", 8, ("node-0", "node-1", "node-2")),
    ("rerank", "product", 8, ("node-3",)),
    ("notebook", "product", 1, ("node-4",)),
)
WAITING = (("ablation", "research", 8, 4), ("serve-chat", "product", 8, 2), ("huge", "research", 8, 2))


def write_quotas(folder: Path) -> Path:
    """The quota file of this cluster."""
    path = folder / "quotas.toml"
    path.write_text(QUOTAS)
    return path


def fill_books(store: Store) -> None:
    """Write the cluster down: six nodes of eight devices, three jobs that run and three that wait."""
    machines = [
        Machine(
            name=f"node-{n}",
            cpu_milli=64_000,
            memory_mib=512 << 10,
            devices=8,
            model="H100-SXM5-80GB" if n < 4 else "A100-SXM4-80GB",
            sick=(7,) if n == 4 else (),
        )
        for n in range(6)
    ]
    store.join(DRIVER, CLUSTER)
    write_machines(store, CLUSTER, machines)
    for name, queue, devices, nodes in RUNNING:
        enqueue(store, name, queue, devices, len(nodes))
        start(store, name, nodes, beside=store.jobs_of(CLUSTER, address=""))
    for name, queue, devices, ranks in WAITING:
        record = enqueue(store, name, queue, devices, ranks)
        store.advance(record, "PENDING", f"needs {ranks} ranks of 4 cpu + {devices} device at once, 1 would fit now")


def enqueue(store: Store, name: str, queue: str, devices: int, ranks: int) -> JobRecord:
    """Let a job wait in the books."""
    need = Resources(cpus=4, devices=devices)
    job = Job(id=name, name=name, entry="none:none", ranks=ranks, queue=queue, resources=need, starts=5)
    return store.enqueue(job, address="", cluster=CLUSTER, driver=DRIVER)


def start(store: Store, name: str, nodes: Sequence[str], *, beside: Sequence[JobRecord]) -> None:
    """Give a job of the books its places."""
    placed = Placement(job_id=name, nodes=tuple(nodes))
    assert store.assign(CLUSTER, [placed], driver=DRIVER, beside=beside), name
