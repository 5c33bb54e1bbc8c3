"""The scheduling verbs, from the command line to what is printed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.cli.app import main
from mainspring.testing.traces import write_trace

SCENE = """
levels = ["rack"]
queues = [{ name = "org" }, { name = "a", parent = "org" }, { name = "b", parent = "org" }]

[[machines]]
name = "n0"
cpu_milli = 64000
memory_mib = 1000
devices = 8
model = "H100"
domain = ["r0"]

[[gangs]]
id = "first"
queue = "a"
request = { devices = 8 }

[[gangs]]
id = "second"
queue = "a"
request = { devices = 4 }
"""


@pytest.fixture
def ms(tmp_path, monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mainspring", "--home", str(tmp_path / "home"), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capfd.readouterr())

    return run


def test_a_simulation_prints_a_table_or_json(ms, tmp_path):
    nodes, pods = (str(path) for path in write_trace(tmp_path, nodes=20, tasks=100))
    asked = ("simulate", "--nodes", nodes, "--pods", pods, "--load", "0.5,1.3", "--seeds", "2")
    code, out, _ = ms(*asked)
    assert code == 0
    assert "devices in use" in out
    code, out, _ = ms(*asked, "--policy", "tuned", "--json")
    found = json.loads(out)
    assert [at["load"] for at in found["loads"]] == [0.5, 1.3]
    assert found["policy"] == "tuned"
    assert len(found["loads"][1]["by_seed"]) == 2
    assert ms("simulate", "--nodes", nodes, "--pods", pods, "--load", "full")[0] == 2


def test_a_scene_says_who_runs_who_waits_and_what_would_help(ms, tmp_path):
    scene = tmp_path / "scene.toml"
    scene.write_text(SCENE)
    code, out, err = ms("why", str(scene))
    assert (code, err) == (0, "")
    assert "second would start with the end of first" in out
    assert json.loads(ms("why", str(scene), "second", "--json")[1])[0]["state"] == "waiting"
    code, out, _ = ms("gather", str(scene), "org", "second")
    assert code == 0
    assert "first" in out
    assert "device-hours are lost" in out


def test_a_quota_file_is_shown_and_none_is_an_error(ms, tmp_path):
    path = tmp_path / "quotas.toml"
    path.write_text('[[queues]]\nname = "a"\nquotas = [{ resource = "cpu", min = 1 }]\n')
    code, out, _ = ms("quota", str(path), "--json")
    assert code == 0
    assert json.loads(out)[0]["min"] == 1
    assert ms("quota")[0] == 2
    path.write_text('[[queues]]\nname = "a"\nparent = "a"\n')
    assert "circle" in ms("quota", str(path))[2]


def test_an_estimate_names_its_methods(ms):
    code, out, _ = ms("estimate", "train", "--params", "7", "--tokens", "1000", "--device", "a100-sxm4-80gb")
    assert code == 0
    assert "A100-SXM4-80GB" in out
    assert "6 x active parameters" in out
    assert ms("estimate", "train", "--params", "7")[0] == 2
    assert len(json.loads(ms("estimate", "serve", "--params", "7", "--tokens", "1", "--json")[1])) > 10


def test_the_files_of_a_trace_may_lie_anywhere(ms, tmp_path):
    missing = str(Path(tmp_path) / "none.csv")
    code, _, err = ms("simulate", "--nodes", missing, "--pods", missing)
    assert code == 2
    assert "no file" in err
