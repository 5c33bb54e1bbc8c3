"""What a handle tells of a job, and how nodes are named, without Ray."""

from pathlib import Path

import pytest

from mainspring.cluster.engine import member_of
from mainspring.cluster.handle import LOG_BYTES, Handle
from mainspring.spec import Job, SpecError


def ray_node(number: int, host: str) -> dict[str, object]:
    return {
        "NodeManagerHostname": host,
        "NodeID": f"{number:08x}{'f' * 48}",
        "NodeManagerAddress": f"10.0.0.{number}",
        "Resources": {"CPU": 2.0, "memory": 1024.0, "GPU": 1.0},
    }


def test_two_nodes_with_one_host_name_are_told_apart_and_others_keep_theirs():
    found = [ray_node(1, "box"), ray_node(2, "box"), ray_node(3, "other")]
    members = [member_of(node, among=found) for node in found]
    assert [member.capacity.node for member in members] == ["box/00000001", "box/00000002", "other"]
    assert [member.address for member in members] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert {member.accelerator for member in members} == {"GPU"}
    assert len({member.id for member in members}) == 3


def test_of_a_long_log_the_end_is_told_and_of_none_nothing(tmp_path: Path):
    handle = Handle(Job(id="j", name="j", entry="m:f", ranks=2), tmp_path, None)
    (tmp_path / "rank-0.log").write_bytes(b"x" * (LOG_BYTES + 100) + b"end")
    assert len(handle.logs(0)) == LOG_BYTES
    assert handle.logs(0).endswith("xend")
    assert handle.logs(1) == ""
    with pytest.raises(SpecError, match="ranks 0 to 1, not 2"):
        handle.logs(2)
