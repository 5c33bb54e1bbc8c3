"""Benchmarks run, agree with the code they measure, and are quoted as they were found.

Guards are on ratios and on what is computed, never on absolute times, and far enough from what is reached that a
busy machine does not fail them.
"""

import ast
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_bench() -> ModuleType:
    found = importlib.util.spec_from_file_location("bench", ROOT / "scripts" / "bench.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


bench = load_bench()
NAMES = bench.names(ROOT)
FOUND = {
    "benchmark": "speed",
    "headline": "twice as fast",
    "columns": ["arm", "tokens/s"],
    "rows": [["ours", "2"], ["theirs", "1"]],
    "numbers": {"ratio": 2.0},
    "spec": {"rounds": 5},
    "commit": "abc",
    "changed_files": 0,
    "machine": {"cpu": "a CPU", "architecture": "x", "cores": 2, "memory_gib": 4.0, "load_average": [0.1, 0.2, 0.3]},
    "versions": {"python": "3.11"},
}
DOC = '"""How fast is it?\n\nCeiling: light.\n\nRun: python benchmarks/speed.py\n"""\n'


@cache
def quick(name: str) -> dict:
    return bench.run(name, ROOT, quick=True)


@pytest.mark.bench
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_and_ends_with_one_json_object(name):
    found = quick(name)
    assert found["benchmark"] == name
    assert found["rows"]
    assert all(len(row) == len(found["columns"]) for row in found["rows"])
    assert found["numbers"]
    assert found["samples"]
    assert {"commit", "machine", "versions"} <= found.keys()


@pytest.mark.bench
@pytest.mark.timeout(400)
def test_sixteen_clients_are_served_faster_than_one_after_another_and_get_the_same_text():
    numbers = quick("serve_throughput")["numbers"]
    assert numbers["handbook_ratio"] > 1.5
    assert numbers["handbook_same_text"] == 1.0


@pytest.mark.bench
@pytest.mark.timeout(400)
def test_training_costs_about_what_the_same_loop_costs_by_hand_and_computes_the_same():
    numbers = quick("train_overhead")["numbers"]
    assert numbers["short_cpu_overhead_percent"] < 40
    assert numbers["short_loss_difference"] < 1e-4


@pytest.mark.bench
def test_the_help_page_imports_no_framework():
    assert quick("cli_help")["spec"]["heavy_imports"] == []


@pytest.mark.bench
@pytest.mark.timeout(400)
def test_what_deduplication_removes_is_a_copy_and_nearly_no_copy_stays():
    numbers = quick("data_dedup")["numbers"]
    assert numbers["speed_ratio"] > 1.5
    assert numbers["precision"] > 0.99
    assert numbers["recall"] > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_its_question_its_ceiling_and_how_to_run_it(name):
    doc = ast.get_docstring(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text("utf-8")))
    assert doc is not None
    assert doc.partition("\n")[0].endswith("?")
    assert "\nCeiling: " in doc
    assert f"\nRun: python benchmarks/{name}.py" in doc


@pytest.mark.parametrize("name", NAMES)
def test_every_page_shows_exactly_the_findings_kept_beside_it(name):
    folder = ROOT / "docs" / "benchmarks"
    found = json.loads((folder / f"{name}.json").read_text("utf-8"))
    doc = ast.get_docstring(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text("utf-8")))
    assert bench.page_block(found, doc) in (folder / f"{name}.md").read_text("utf-8")


def test_plans_are_ranked_as_they_were_measured_and_the_fastest_is_found():
    found = json.loads((ROOT / "docs" / "benchmarks" / "plan_wall_time.json").read_text("utf-8"))
    predicted, measured = found["samples"]["predicted"], found["samples"]["seconds"]
    assert found["numbers"]["plans"] == len(predicted) >= 12
    assert found["numbers"]["spearman"] >= 0.8
    assert min(predicted, key=predicted.get) == min(measured, key=lambda name: sorted(measured[name])[2])


def test_every_number_quoted_in_the_readme_is_the_one_that_was_measured():
    text = (ROOT / "README.md").read_text("utf-8")
    quotations = bench.MARKED.findall(text)
    assert {name.partition(".")[0] for name, _ in quotations} <= bench.stored(ROOT).keys()
    assert bench.fill(text, bench.stored(ROOT)) == text
    assert len(re.findall(r"<!-- bench:", text)) == len(quotations)


def test_writing_a_page_again_keeps_what_people_wrote_around_it(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.py").write_text(DOC)
    bench.write_page(FOUND, tmp_path)
    page = tmp_path / "docs" / "benchmarks" / "speed.md"
    first = page.read_text("utf-8")
    assert first.startswith("# How fast is it?\n")
    assert "| ours | 2 |" in first
    page.write_text(first + "\nWhat we make of it.\n")
    bench.write_page({**FOUND, "headline": "thrice as fast"}, tmp_path)
    second = page.read_text("utf-8")
    assert second == first.replace("Twice", "Thrice") + "\nWhat we make of it.\n"


def test_quotations_are_replaced_and_everything_else_stays():
    text = "a <!-- bench:speed -->old<!-- /bench --> b <!-- bench:speed.ratio -->9<!-- /bench --> c"
    filled = bench.fill(text, {"speed": FOUND})
    assert filled == "a <!-- bench:speed -->twice as fast<!-- /bench --> b <!-- bench:speed.ratio -->2<!-- /bench --> c"
    assert "| theirs | 1 |" in bench.fill("<!-- bench:speed.table --><!-- /bench -->", {"speed": FOUND})
    with pytest.raises(KeyError):
        bench.fill("<!-- bench:speed.rate -->9<!-- /bench -->", {"speed": FOUND})
