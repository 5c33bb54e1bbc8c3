"""What a container may use: cores and memory under both versions of cgroups."""

import os
from pathlib import Path

import psutil
import pytest

from mainspring.hardware import limits
from mainspring.hardware.probe import probe_node
from mainspring.plan.search import plan_training
from mainspring.spec import BlockSpec, Cluster, DoesNotFit, ModelSpec, Settings, TrainConfig


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def in_groups(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A root folder in which this process is in the cgroups of `membership`, with `files` under the cgroup mount."""
    placed = {f"sys/fs/cgroup/{name}": text for name, text in files.items()} | {"proc/self/cgroup": membership}
    for name, text in placed.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_v2_quota_caps_cores_and_memory(tmp_path: Path) -> None:
    files = {
        "box/cpu.max": "250000 100000\n",
        "box/memory.max": f"{1 << 30}\n",
        "box/memory.current": f"{600 << 20}\n",
        "box/memory.stat": f"anon 1\ninactive_file {100 << 20}\n",
    }
    root = in_groups(tmp_path, "0::/box\n", files)
    assert limits.cores(root) == 2
    assert limits.memory_bytes(root) == 1 << 30
    assert limits.used_memory_bytes(root) == 500 << 20  # file cache can be taken back


def test_a_parents_limit_binds_its_children(tmp_path: Path) -> None:
    files = {
        "pod/cpu.max": "300000 100000",
        "pod/box/cpu.max": "max 100000",
        "pod/memory.max": f"{1 << 30}",
        "pod/box/memory.max": "max",
    }
    root = in_groups(tmp_path, "0::/pod/box\n", files)
    assert limits.cores(root) == 3
    assert limits.memory_bytes(root) == 1 << 30


def test_a_v1_quota_caps_cores_and_memory(tmp_path: Path) -> None:
    files = {
        "cpu/box/cpu.cfs_quota_us": "400000",
        "cpu/box/cpu.cfs_period_us": "100000",
        "memory/box/memory.limit_in_bytes": f"{2 << 30}",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    root = in_groups(tmp_path, "4:memory:/box\n3:cpu:/box\n0::/\n", files)
    assert limits.cores(root) == 4
    assert limits.memory_bytes(root) == 2 << 30


def test_without_limits_the_whole_machine_counts(tmp_path: Path) -> None:
    root = in_groups(tmp_path, "3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert limits.cores(root) == 8
    assert limits.memory_bytes(root) == psutil.virtual_memory().total


def test_half_a_core_is_still_one(tmp_path: Path) -> None:
    root = in_groups(tmp_path, "0::/\n", {"cpu.max": "50000 100000"})
    assert limits.cores(root) == 1


@pytest.mark.parametrize(
    ("membership", "file"),
    [("0::/box\n", "box/memory.max"), ("4:memory:/docker/17\n0::/\n", "memory/memory.limit_in_bytes")],
    ids=["v2", "v1, in a namespace of its own"],
)
def test_a_plan_for_a_container_keeps_within_its_memory(
    tmp_path: Path, settings: Settings, membership: str, file: str
) -> None:
    """A model of 40 M parameters needs 16 bytes each and does not fit into a container of 512 MiB on any machine."""
    root = in_groups(tmp_path / "root", membership, {file: f"{512 << 20}\n"})
    block = BlockSpec(
        name="b",
        count=1,
        params=40_000_000,
        flops_per_token=8e7,
        attention_flops_per_token2=0.0,
        activation_bytes_per_token=4.0,
        output_bytes_per_token=4.0,
    )
    model, config = ModelSpec(name="m", blocks=(block,), seq_len=8), TrainConfig(steps=1, global_batch=2, seq_len=8)
    node = probe_node(root)
    assert node.memory_bytes == 512 << 20
    with pytest.raises(DoesNotFit, match="512 MiB, 90% of it usable"):
        plan_training(model, Cluster(name="box", nodes=(node,), link=node.link), config, ranks=1)
    whole = probe_node()
    assert plan_training(model, Cluster(name="host", nodes=(whole,), link=whole.link), config, ranks=1).memory
