"""What ranks on one machine are held to: really, where this machine can, and by what is written where it cannot."""

import ctypes
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mainspring.hardware.census import take_census
from mainspring.hardware.devices.nvml import Nvml
from mainspring.hardware.share import claim, claim_cores, device_environment, find_slice, isolation, make_cgroup
from mainspring.spec import SpecError

GIB = 1 << 30


class Library:
    """Answers like libnvidia-ml for two devices; the second is cut into MIG instances of 10 and 20 of its 40 GiB."""

    sizes = {10: 40 * GIB, 20: 40 * GIB, 1: 10 * GIB, 2: 20 * GIB}  # noqa: RUF012
    errors = {10: 0, 20: 3}  # noqa: RUF012

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, found: Any) -> int:  # noqa: N802
        found._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, found: Any) -> int:  # noqa: N802
        found._obj.value = 10 * (number + 1)
        return 0 if number < 2 else 2

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p, text: Any, size: int) -> int:  # noqa: N802
        text.value = b"NVIDIA A100-SXM4-40GB"
        return 0

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, text: Any, size: int) -> int:  # noqa: N802
        text.value = f"MIG-{handle.value}".encode()
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, found: Any) -> int:  # noqa: N802
        found._obj.total, found._obj.used = self.sizes[handle.value or 0], 0
        return 0

    def nvmlDeviceGetTotalEccErrors(self, handle: ctypes.c_void_p, kind: int, counter: int, found: Any) -> int:  # noqa: N802
        found._obj.value = self.errors[handle.value or 0]
        return 0

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: ctypes.c_void_p, found: Any) -> int:  # noqa: N802
        found._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: ctypes.c_void_p, number: int, found: Any) -> int:  # noqa: N802
        found._obj.value = number + 1
        return 0 if handle.value == 20 and number < 2 else 6


def test_a_census_tells_models_and_finds_the_device_with_broken_memory():
    found = take_census(Nvml(Library()))
    assert found is not None
    assert len(found.models) == 2
    assert found.sick == (1,)
    assert found.health[1].reasons == ("3 uncorrected memory errors since the last reset",)


def test_without_nvidias_driver_there_are_none_and_with_anothers_nobody_knows(tmp_path: Path):
    none = take_census(others=())
    assert none is not None
    assert none.models == ()
    assert take_census(others=(str(tmp_path),)) is None


def test_a_share_gets_the_smallest_slice_that_is_large_enough():
    nvml = Nvml(Library())
    assert find_slice(1, 0.25, nvml=nvml) == ("MIG-1", "MIG-2")
    assert find_slice(1, 0.5, nvml=nvml) == ("MIG-2",)
    assert find_slice(1, 0.8, nvml=nvml) == ()
    assert find_slice(0, 0.25, nvml=nvml) == ()


def test_devices_are_shown_by_the_names_that_the_node_was_given():
    assert device_environment("GPU", [0, 2], share=0, given={})["CUDA_VISIBLE_DEVICES"] == "0,2"
    given = {"CUDA_VISIBLE_DEVICES": "4,GPU-abc"}
    assert device_environment("GPU", [1], share=0, given=given)["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    assert device_environment("GPU", [], share=0, given=given)["CUDA_VISIBLE_DEVICES"] == ""
    assert device_environment("NPU", [3], share=0.5, given={}) == {"ASCEND_RT_VISIBLE_DEVICES": "3"}
    with pytest.raises(SpecError, match="shows a process its XPU"):
        device_environment("XPU", [0], share=0, given={})


def test_a_share_is_held_by_mps_only_where_its_daemon_listens(tmp_path: Path):
    absent = device_environment("GPU", [0], share=0.25, given={}, mps=tmp_path / "none")
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in absent
    found = device_environment("GPU", [0], share=0.25, memory_bytes=40 * GIB, given={}, mps=tmp_path)
    assert found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    assert found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=10240M"


def test_nobody_gets_a_core_twice_and_a_killed_owner_leaves_none_claimed(tmp_path: Path):
    cores = [str(core) for core in range(4)]
    first = claim("core", cores, 3, folder=tmp_path)
    assert first is not None
    assert first.names == ("0", "1", "2")
    assert claim("core", cores, 2, folder=tmp_path) is None
    last = claim("core", cores, 1, folder=tmp_path)
    assert last is not None
    assert last.names == ("3",)
    last.release()
    first.release()
    program = f"""
        import os, signal
        from pathlib import Path
        from mainspring.hardware.share import claim
        assert claim("core", {cores!r}, 3, folder=Path({str(tmp_path)!r}))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)]).returncode == -9
    again = claim("core", cores, 3, folder=tmp_path)
    assert again is not None
    again.release()
    assert claim_cores(0.5, folder=tmp_path) is None
    assert claim_cores(len(os.sched_getaffinity(0)) + 1, folder=tmp_path) is None


def test_a_process_keeps_to_its_cores_and_its_memory():
    program = """
        import json, os
        from mainspring.hardware.share import Bounds, apply
        core = min(os.sched_getaffinity(0))
        apply(Bounds(cores=(core,), memory_bytes=256 << 20))
        small = len(bytearray(64 << 20))
        try:
            bytearray(512 << 20)
            refused = False
        except MemoryError:
            refused = True
        print(json.dumps([list(os.sched_getaffinity(0)) == [core], small, refused]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, 64 << 20, True]


def test_a_cgroup_is_made_where_memory_is_delegated_and_only_there(tmp_path: Path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user/ours\n")
    ours = tmp_path / "sys/fs/cgroup/user/ours"
    ours.mkdir(parents=True)
    assert make_cgroup("rank-0", GIB, root=tmp_path) is None
    assert any("RLIMIT_DATA" in line for line in isolation((), root=tmp_path))
    (ours / "cgroup.subtree_control").write_text("cpu memory pids\n")
    group = make_cgroup("rank-0", GIB, root=tmp_path)
    assert group == ours / "rank-0"
    assert (group / "memory.max").read_text() == str(GIB)
    assert any("held to it by a cgroup" in line for line in isolation((), root=tmp_path))


def test_what_is_not_isolated_is_said(tmp_path: Path):
    told = " ".join(isolation(("nvidia",), mps=tmp_path / "none"))
    assert "kernels take turns" in told
    assert "nothing else does" in told
    assert "fatal fault" in " ".join(isolation(("nvidia",), mps=tmp_path))
    assert not any("device" in line for line in isolation(("cpu",)))
