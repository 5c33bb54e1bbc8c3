"""Strict parsing: every complaint names the dotted path, every typo the nearest key."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.spec import Artifact, ClusterFile, FileEntry, NotFound, SpecError, TrainConfig
from mainspring.store.parse import apply_overrides, load_toml, read_json, to_dict, to_json

CLUSTER = """
name = "lab"
[link]
gigabytes_per_s = 12.5
[[nodes]]
device = "L4"
devices = 4
[[nodes]]
device = "A100"
devices = 8
count = 2
[nodes.link]
gigabytes_per_s = 300
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER)
    return path


def test_a_toml_file_becomes_a_spec_with_tuples_and_nested_specs(cluster: Path) -> None:
    read = load_toml(cluster, ClusterFile)
    assert [(node.device, node.devices, node.count) for node in read.nodes] == [("L4", 4, 1), ("A100", 8, 2)]
    assert read.nodes[1].link is not None
    assert read.nodes[1].link.gigabytes_per_s == 300.0


def test_overrides_reach_tables_arrays_and_missing_tables(cluster: Path) -> None:
    overrides = ("link.microseconds=2", "nodes.0.devices = 1", "name=office", "nodes.0.link.gigabytes_per_s=1.5")
    read = load_toml(cluster, ClusterFile, overrides)
    assert (read.link.microseconds, read.nodes[0].devices, read.name) == (2.0, 1, "office")
    assert read.nodes[0].link is not None
    assert read.nodes[0].link.gigabytes_per_s == 1.5


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("link.microsecnds=2", "link.microsecnds: no such key", "did you mean microseconds?"),
        ("nodes.1.link.gigabytes=2", "nodes.1.link.gigabytes: no such key", "did you mean gigabytes_per_s?"),
        ("nodes.0.count=two", "nodes.0.count: Input should be a valid integer, got 'two'", ""),
        ('nodes.0.count="3"', "nodes.0.count: Input should be a valid integer, got '3'", ""),
        ("nodes.0.count=2.5", "nodes.0.count: Input should be a valid integer", ""),
        ("name=3", "name: Input should be a valid string, got 3", ""),
        ("nodes.7.count=3", "'7' is not one of the 2 items", "count from 0"),
        ("nodes.first.count=3", "'first' is not one of the 2 items", "count from 0"),
        ("name.first=3", "'first' lies under a value that is not a table", ""),
        ("no-equals-sign", "is not key=value", "for example -s optim.lr=3e-4"),
        ("=3", "is not key=value", "for example -s optim.lr=3e-4"),
        ("a..b=3", "is not key=value", "for example -s optim.lr=3e-4"),
        ("color=red", "color: no such key", "known keys: link, name, nodes"),
    ],
)
def test_a_typo_in_an_override_names_the_path_and_the_nearest_key(
    cluster: Path, override: str, message: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load_toml(cluster, ClusterFile, (override,))
    assert message in str(caught.value)
    assert caught.value.hint == hint


def test_every_mistake_of_a_file_is_told_at_once(cluster: Path) -> None:
    cluster.write_text('[link]\ngigabytes_per_s = "fast"\n[[nodes]]\ndevice = "L4"\n')
    with pytest.raises(SpecError) as caught:
        load_toml(cluster, ClusterFile)
    for part in ("cluster.toml", "name: is required", "nodes.0.devices: is required", "link.gigabytes_per_s: "):
        assert part in str(caught.value)


def test_a_value_the_spec_itself_refuses_is_told_in_its_own_words() -> None:
    with pytest.raises(SpecError, match=r"global_batch .10. is not a multiple of microbatch .3."):
        read_json('{"steps": 1, "global_batch": 10, "seq_len": 8, "microbatch": 3}', TrainConfig)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_number_that_is_none_is_told_with_its_file_and_its_field(cluster: Path, number: str) -> None:
    cluster.write_text(CLUSTER.replace("12.5", number))
    with pytest.raises(SpecError) as caught:
        load_toml(cluster, ClusterFile)
    assert str(caught.value) == f"{cluster}: link.gigabytes_per_s is {number}, which is no finite number"


def test_of_several_keys_that_were_perhaps_meant_a_missing_one_is_named(cluster: Path) -> None:
    cluster.write_text(CLUSTER.replace("devices = 4", "device_count = 4"))
    with pytest.raises(SpecError, match=r"nodes\.0\.devices: is required") as caught:
        load_toml(cluster, ClusterFile)
    assert caught.value.hint == "did you mean devices?"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "devices = 4",
            "devices = 4\nprice_usd_per_hour = -3.5",
            "price_usd_per_hour of L4 must be at least 0, got -3.5",
        ),
        ("power_watts = 300", "power_watts = 0", "power_watts of Q7 must be positive, got 0"),
        ("power_watts = 300", "power_watts = -300", "power_watts of Q7 must be at least 0, got -300"),
        ("power_watts = 300", "power_watts = 300\nblock_overhead_s = -1", "block_overhead_s of Q7 must be at least 0"),
        (
            "power_watts = 300",
            "power_watts = 300\nprice_usd_per_hour = -1",
            "price_usd_per_hour of Q7 must be at least",
        ),
        ("int8_ops_per_s = 0", "int8_ops_per_s = -1", "int8_ops_per_s of Q7 must be at least 0, got -1"),
        ("memory_bytes = 1", "memory_bytes = 0", "memory_bytes of Q7 must be positive, got 0"),
    ],
)
def test_a_figure_that_cannot_be_is_told_with_file_device_field_and_value(cluster: Path, old: str, new: str, said: str):
    measured = """
[nodes.measured]
vendor = "acme"
name = "Q7"
memory_bytes = 1
memory_bytes_per_s = 1e12
fp32_flops_per_s = 1e13
bf16_flops_per_s = 1e14
int8_ops_per_s = 0
power_watts = 300
"""
    text = CLUSTER + measured.replace("\n[", '\n[[nodes]]\ndevice = "Q7"\ndevices = 1\n[')
    cluster.write_text(text)
    load_toml(cluster, ClusterFile)
    cluster.write_text(text.replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        load_toml(cluster, ClusterFile)
    assert str(cluster) in str(caught.value)
    assert said in str(caught.value)


def test_files_that_are_not_toml_are_explained(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        load_toml(tmp_path / "none.toml", ClusterFile)
    with pytest.raises(SpecError, match="cannot read"):
        load_toml(tmp_path, ClusterFile)
    (tmp_path / "binary.toml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(SpecError, match="cannot read"):
        load_toml(tmp_path / "binary.toml", ClusterFile)
    (tmp_path / "broken.toml").write_text("name = \n")
    with pytest.raises(SpecError, match=r"not valid TOML.*line 1"):
        load_toml(tmp_path / "broken.toml", ClusterFile)
    with pytest.raises(SpecError, match="Invalid JSON"):
        read_json("{", ClusterFile)


def test_what_json_cannot_hold_is_named_by_its_path() -> None:
    with pytest.raises(SpecError, match=r"a\.1 of type object"):
        to_json({"a": [1, object()]})
    with pytest.raises(SpecError, match="keys are text"):
        to_json({"a": {1: 2}})
    with pytest.raises(SpecError, match="no finite number"):
        to_json({"a": {"b": float("nan")}})


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_json_comes_back_as_it_was_and_key_order_does_not_matter(data: dict[str, Any]) -> None:
    assert json.loads(to_json(data)) == data
    assert to_json(dict(reversed(data.items()))) == to_json(data)


@given(
    st.builds(
        Artifact,
        kind=st.text(),
        name=st.text(),
        version=st.integers(0, 2**53),
        digest=st.text(),
        size_bytes=st.integers(0, 2**53),
        created_s=st.floats(0, 1e12),
        files=st.lists(
            st.builds(FileEntry, path=st.text(), digest=st.text(), size_bytes=st.integers(0, 2**53)), max_size=3
        ).map(tuple),
        tags=st.lists(st.text(), max_size=3).map(tuple),
    )
)
def test_a_spec_survives_json(artifact: Artifact) -> None:
    assert read_json(to_json(artifact), Artifact) == artifact
    assert apply_overrides(to_dict(artifact), ()) == to_dict(artifact)


def test_reading_specs_imports_no_database() -> None:
    program = "import sys, mainspring.store.parse; print('sqlalchemy' in sys.modules, 'alembic' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]
