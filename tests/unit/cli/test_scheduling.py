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


@pytest.fixture
def scene(tmp_path) -> str:
    path = tmp_path / "scene.toml"
    path.write_text(SCENE)
    return str(path)


def test_a_scene_says_who_runs_who_waits_and_what_would_help(ms, scene):
    code, out, err = ms("why", "--scene", scene)
    assert (code, err) == (0, "")
    assert "second would start with the end of first" in out
    assert json.loads(ms("why", "second", "--scene", scene, "--json")[1])[0]["state"] == "waiting"
    code, out, _ = ms("gather", "org", "second", "--scene", scene, "--dry-run")
    assert code == 0
    assert "first" in out
    assert "device-hours are lost" in out


def test_a_job_that_is_only_described_hears_what_would_happen_to_it(ms, scene):
    asked = ("why", "--scene", scene, "--queue", "b", "--devices", "4", "--json")
    told = json.loads(ms(*asked, "--ranks", "1")[1])[0]
    assert (told["state"], [victim["gang"] for victim in told["victims"]]) == ("running", ["first"])
    assert json.loads(ms(*asked, "--ranks", "3")[1])[0]["state"] == "refused"
    plan = json.loads(ms("gather", "org", "--scene", scene, "--ranks", "2", "--devices", "4", "--dry-run", "--json")[1])
    assert [victim["gang"] for victim in plan["victims"]] == ["first"]
    code, _, err = ms("why", "first", "--scene", scene, "--ranks", "2")
    assert code == 2
    assert "give one of them" in err
    assert "share of one device" in ms(*asked, "--ranks", "1", "--devices", "1.5")[2]
    assert "--dry-run" in ms("gather", "org", "second", "--scene", scene)[2]


def test_the_queue_and_the_nodes_of_a_scene_are_listed_with_who_is_there(ms, scene):
    code, out, _ = ms("queue", "--scene", scene)
    assert code == 0
    assert "no room for 1 rank at once on H100" in out
    code, out, _ = ms("nodes", "--scene", scene)
    assert code == 0
    assert "8 of 8 H100" in out
    assert json.loads(ms("nodes", "--scene", scene, "--json")[1])[0]["holders"] == [["first"]] * 8
    used = {part["resource"]: part for part in json.loads(ms("quota", "--scene", scene, "--json")[1])}
    assert (used["devices"]["used"], used["devices"]["waiting"]) == (0, 0)  # queue b, the last to state it


def test_on_an_idle_machine_nobody_waits_and_a_node_is_open(ms):
    assert "nobody waits" in ms("queue")[1]
    code, out, err = ms("nodes")
    assert (code, err) == (0, "")
    assert "open" in out
    assert "no job" in ms("why")[1]
    assert ms("why", "nobody")[0] != 0


def test_a_quota_file_is_shown_and_a_circle_is_named(ms, tmp_path):
    path = tmp_path / "quotas.toml"
    path.write_text('[[queues]]\nname = "a"\nquotas = [{ resource = "cpu", min = 1 }]\n')
    code, out, _ = ms("quota", str(path), "--json")
    assert code == 0
    assert json.loads(out)[0]["min"] == 1
    assert "default" in ms("quota")[1]
    assert ms("quota", "--cluster", "cluster.toml")[0] == 2
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


def test_a_job_is_left_with_a_menu_of_shapes_and_one_that_contradicts_itself_is_refused(ms, tmp_path):
    path = tmp_path / "menu.toml"
    shape = '[[menu]]\nplan = "{plan}"\nranks = {ranks}\nspeed = {speed}\n'
    path.write_text(shape.format(plan="three", ranks=3, speed=27) + shape.format(plan="one", ranks=1, speed=10))
    code, out, _ = ms("job", "submit", "m:f", "--name", "j", "--menu", str(path), "--priority", "2", "--json")
    job = json.loads(out)["job"]
    assert (code, job["ranks"], job["priority"], [each["plan"] for each in job["menu"]]) == (0, 1, 2, ["three", "one"])
    assert ms("job", "submit", "m:f", "--ranks", "2", "--menu", str(path))[2].startswith("error: --menu says how many")
    path.write_text(2 * shape.format(plan="one", ranks=1, speed=10))
    assert "two shapes of a menu have one name: one, one" in ms("job", "submit", "m:f", "--menu", str(path))[2]
    path.write_text("menu = []\n")
    assert "has no shape" in ms("job", "submit", "m:f", "--menu", str(path))[2]
