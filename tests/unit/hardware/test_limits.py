"""What a container may use: cores and memory under both versions of cgroups."""

import os
from pathlib import Path

import psutil
import pytest

from mainspring.hardware import limits


def in_groups(monkeypatch: pytest.MonkeyPatch, root: Path, membership: str, files: dict[str, str]) -> None:
    """Pretend that this process is in the cgroups of `membership`, with `files` under the cgroup mount."""
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "membership").write_text(membership)
    monkeypatch.setattr(limits, "CGROUPS", root / "cgroup")
    monkeypatch.setattr(limits, "MEMBERSHIP", root / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def test_a_v2_quota_caps_cores_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "box/cpu.max": "250000 100000\n",
        "box/memory.max": f"{1 << 30}\n",
        "box/memory.current": f"{600 << 20}\n",
        "box/memory.stat": f"anon 1\ninactive_file {100 << 20}\n",
    }
    in_groups(monkeypatch, tmp_path, "0::/box\n", files)
    assert limits.cores() == 2
    assert limits.memory_bytes() == 1 << 30
    assert limits.used_memory_bytes() == 500 << 20  # file cache can be taken back


def test_a_parents_limit_binds_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "pod/cpu.max": "300000 100000",
        "pod/box/cpu.max": "max 100000",
        "pod/memory.max": f"{1 << 30}",
        "pod/box/memory.max": "max",
    }
    in_groups(monkeypatch, tmp_path, "0::/pod/box\n", files)
    assert limits.cores() == 3
    assert limits.memory_bytes() == 1 << 30


def test_a_v1_quota_caps_cores_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "cpu/box/cpu.cfs_quota_us": "400000",
        "cpu/box/cpu.cfs_period_us": "100000",
        "memory/box/memory.limit_in_bytes": f"{2 << 30}",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    in_groups(monkeypatch, tmp_path, "4:memory:/box\n3:cpu:/box\n0::/\n", files)
    assert limits.cores() == 4
    assert limits.memory_bytes() == 2 << 30


def test_without_limits_the_whole_machine_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_groups(monkeypatch, tmp_path, "3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert limits.cores() == 8
    assert limits.memory_bytes() == psutil.virtual_memory().total


def test_half_a_core_is_still_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_groups(monkeypatch, tmp_path, "0::/\n", {"cpu.max": "50000 100000"})
    assert limits.cores() == 1
