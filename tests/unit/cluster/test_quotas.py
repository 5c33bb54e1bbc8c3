"""A quota file against a cluster."""

import pytest

from mainspring.cluster.quotas import fair_shares
from mainspring.spec import Queue, QueueFile, Quota, SpecError
from mainspring.store import parse
from mainspring.testing.machines import build_cluster, build_device

A100 = build_device("A100", memory_bytes=80 << 30, bf16_flops_per_s=3e14, memory_bytes_per_s=2e12)
T4 = build_device("T4", memory_bytes=16 << 30, bf16_flops_per_s=6e13, memory_bytes_per_s=3e11)
TREE = """
[[queues]]
name = "research"
quotas = [{ resource = "devices", min = 12 }]

[[queues]]
name = "vision"
parent = "research"
weight = 2
quotas = [{ resource = "devices", min = 10, max = 14 }, { resource = "devices/A100", min = 4 }]

[[queues]]
name = "speech"
parent = "research"

[[queues]]
name = "guests"
quotas = [{ resource = "devices", borrow = 2 }]
"""


def test_a_file_is_read_and_every_queue_has_its_part(tmp_path):
    path = tmp_path / "quotas.toml"
    path.write_text(TREE)
    queues = parse.load_toml(path, QueueFile).queues
    found = {(part.queue, part.resource): part for part in fair_shares(queues, build_cluster((A100, 8, 1), (T4, 8, 1)))}
    vision = found["vision", "devices"]
    assert (vision.depth, vision.min, vision.max, vision.jobs) == (1, 10, 14, True)
    assert found["guests", "devices"].share == 2
    assert found["research", "devices"].share == 14
    assert vision.share + found["speech", "devices"].share == 14
    assert found["vision", "devices/A100"].min == 4
    assert not found["research", "devices"].jobs


def test_minima_above_what_the_cluster_has_are_an_error_with_both_numbers():
    queues = (Queue(name="a", quotas=(Quota(resource="devices", min=9),)),)
    with pytest.raises(SpecError, match="add up to 9, and "):
        fair_shares(queues, build_cluster((A100, 8, 1)))
