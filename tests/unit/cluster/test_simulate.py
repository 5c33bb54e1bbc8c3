"""Filling a cluster from files: what a trace must look like, what is measured, and that tuning helps."""

import re
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree as ET

import pytest

from mainspring.cluster.schedule.fleet import build_fleet
from mainspring.cluster.schedule.placer import PLAIN, Policy
from mainspring.cluster.simulate.fill import simulate
from mainspring.cluster.simulate.inflate import arrivals, build_demand, capacity, inflate
from mainspring.cluster.simulate.page import page
from mainspring.cluster.simulate.trace import read_machines, read_requests
from mainspring.cluster.simulate.tune import build_shadow, tune
from mainspring.spec import Machine, NotFound, Request, SpecError
from mainspring.testing.traces import build_machines, build_requests, write_trace

NODES = "sn,cpu_milli,memory_mib,gpu,model\n"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"


def test_what_is_written_is_what_is_read(tmp_path):
    nodes, pods = write_trace(tmp_path, nodes=30, tasks=50, bound=0.3)
    assert read_machines(nodes) == build_machines(30)
    assert read_requests(pods) == build_requests(50, bound=0.3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name,cpu_milli\n", "no column memory_mib, num_gpu, gpu_milli"),
        (PODS, "a header and no rows"),
        (PODS + "a,1000,1,1,1500,\n", "line 2: a share of a device is 1 to 1000 thousandths, got 1500"),
        (PODS + "a,1000,1,1,0,\n", "got 0"),
        (PODS + "a,many,1,0,0,\n", "cpu_milli is 'many', which is no number"),
        (PODS + "a,1,1,0.5,1000,\n", "num_gpu is '0.5', which is not whole"),
        (PODS + "a,1e300,1,0,0,\n", "cpu_milli is '1e300', which is no amount"),
        (PODS + "a,-1,1,0,0,\n", "cannot be negative"),
        (PODS + "a,1,1,nan,0,\n", "num_gpu is 'nan'"),
        (PODS + "a,1\n", "the row ends before num_gpu"),
    ],
)
def test_a_task_list_that_makes_no_sense_is_refused_with_its_line(tmp_path, text, complaint):
    path = tmp_path / "pods.csv"
    path.write_text(text)
    with pytest.raises(SpecError, match=complaint):
        read_requests(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (NODES + "a,1000,1,100,T4\n", "has 100 devices; 0 to 62 are possible"),
        (NODES + "a,1000,1,2,\n", "2 devices of no model"),
        (NODES + "a,1000,1,0,\na,1000,1,0,\n", "a occurs twice"),
    ],
)
def test_a_node_list_that_makes_no_sense_is_refused(tmp_path, text, complaint):
    path = tmp_path / "nodes.csv"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        build_fleet(read_machines(path))
    assert complaint in f"{caught.value} {caught.value.hint}"


def test_a_trace_from_elsewhere_is_read_as_it_comes(tmp_path):
    path = tmp_path / "pods.csv"
    path.write_bytes(
        b"\xef\xbb\xbfnum_gpu, gpu_milli,memory_mib,name,cpu_milli\r\n"
        b"1,,30517.578125,a,1500.5\r\n1,460.0,,b,6000\r\n0,,1024,c,\r\n"
    )
    assert read_requests(path) == (
        Request(cpu_milli=1501, memory_mib=30518, devices=1),
        Request(cpu_milli=6000, devices=1, milli=460),
        Request(memory_mib=1024),
    )
    path.write_text("model,gpu,memory_mib,cpu_milli,sn\n,0,1024.9,999.9,a\n")
    assert read_machines(path) == (Machine(name="a", cpu_milli=999, memory_mib=1024),)


def test_a_file_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(NotFound, match="no file nowhere"):
        read_machines(Path("nowhere"))


def test_a_longer_sequence_of_arrivals_begins_with_the_shorter_one():
    fleet = build_fleet(build_machines(20))
    demand = build_demand(build_requests(30), fleet)
    short = arrivals(demand, until=0.5 * capacity(fleet), seed=3)
    long = arrivals(demand, until=2 * capacity(fleet), seed=3)
    assert len(short) < len(long)
    assert (short == long[: len(short)]).all()
    assert (short != arrivals(demand, until=0.5 * capacity(fleet), seed=4)[: len(short)]).any()


def test_a_simulation_fills_the_cluster_and_is_the_same_every_time(tmp_path):
    nodes, pods = write_trace(tmp_path, nodes=60, tasks=500)
    first, again = (simulate(nodes, pods, loads=(1.3, 1.0), seeds=2) for _ in range(2))
    assert first == again
    assert [at.load for at in first.loads] == [1.0, 1.3]
    assert first.impossible == 0
    low, high = first.loads
    assert 80 < low.allocation_percent <= high.allocation_percent <= 100
    assert low.placed <= high.placed
    assert high.turned_away > 0


def test_a_page_draws_everything_by_load_and_says_what_the_table_says(tmp_path):
    nodes, pods = write_trace(tmp_path, nodes=20, tasks=200)
    found = simulate(nodes, pods, loads=(0.75, 1.2), seeds=3)
    assert [at.load for at in found.loads] == [0.75, 1.2]
    assert [at.load for at in found.curve] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1, 1.1, 1.2]
    )
    assert found.loads[1] == found.curve[-1]
    text = page(found)
    root = ET.fromstring("<all>" + "".join(re.findall(r"<svg class=.chart.*?</svg>", text, re.DOTALL)) + "</all>")
    lines = [each.get("points", "").split() for each in root.iter("polyline") if each.get("class") != "ideal"]
    assert [len(points) for points in lines] == [13] * 5
    heights = [float(point.partition(",")[2]) for point in lines[0]]
    assert heights == sorted(heights, reverse=True)  # more load, more in use
    assert f"{found.loads[1].allocation_percent:.2f} %" in text


def test_loads_and_seeds_that_mean_nothing_are_refused(tmp_path):
    nodes, pods = write_trace(tmp_path, nodes=3, tasks=5)
    for wrong in ({"loads": ()}, {"loads": (0.0,)}, {"loads": (99.0,)}, {"seeds": 0}):
        with pytest.raises(SpecError, match="loads lie above 0"):
            simulate(nodes, pods, **wrong)


def test_tasks_that_fit_nowhere_are_counted_and_not_fatal(tmp_path):
    nodes, pods = write_trace(tmp_path, nodes=10, tasks=40)
    with pods.open("a") as file:
        file.write("big,1000,1,9,1000,\nodd,1000,1,1,1000,H999\n")
    found = simulate(nodes, pods, loads=(0.5,), seeds=1)
    assert (found.impossible, found.unknown) == (2, ("H999",))


def test_tuning_never_chooses_what_its_shadow_judges_worse_than_plain():
    machines, tasks = build_machines(60), build_requests(800, bound=0.6)
    demand = build_demand(tasks, build_fleet(machines))
    shadow = build_shadow(machines, demand, loads=(1.0,))
    found = tune(shadow)
    assert fmean(shadow.judge(found)) >= fmean(shadow.judge(PLAIN))


def test_a_price_for_scarce_models_keeps_them_for_tasks_that_can_use_no_other():
    machines, tasks = build_machines(112), build_requests(3000, bound=0.25)
    fleet = build_fleet(machines)
    demand = build_demand(tasks, fleet)
    classes = arrivals(demand, until=0.95 * capacity(fleet), seed=1)
    away = {
        scarce: inflate(fleet.copy(), demand, classes, policy=Policy(scarce=scarce, small=0.5), loads=(0.95,))
        for scarce in (0.0, 12.0)
    }
    assert away[12.0][0].turned_away < away[0.0][0].turned_away
    assert away[12.0][0].allocation_percent > away[0.0][0].allocation_percent
