"""Measured peaks: remembered per machine and plausible against what the silicon can do."""

import json
import os
from pathlib import Path

import pytest

from mainspring.hardware import measure
from mainspring.spec import Settings, SpecError

CPUINFO = """processor\t: 0
model name\t: Test CPU
cpu MHz\t\t: 2000.000
flags\t\t: fpu avx avx2 {flags}

processor\t: 1
model name\t: Test CPU
"""


def test_peaks_without_torch_follow_from_instruction_sets_and_clock() -> None:
    plain = measure.derived_peaks(CPUINFO.format(flags=""), cores=4)
    assert plain.fp32_flops_per_s == 32 * 2e9 * 4
    assert plain.bf16_flops_per_s == plain.fp32_flops_per_s  # no instructions of its own
    wide = measure.derived_peaks(CPUINFO.format(flags="avx512f avx512_bf16 avx512_vnni amx_bf16"), cores=1)
    assert wide.fp32_flops_per_s == 64 * 2e9
    assert wide.bf16_flops_per_s == 2048 * 2e9
    assert wide.int8_ops_per_s == 256 * 2e9
    assert "derived from /proc/cpuinfo" in wide.source
    assert wide.memory_bytes_per_s > 1e8


def test_a_cpu_nobody_knows_is_not_guessed() -> None:
    with pytest.raises(SpecError, match="cannot tell"):
        measure.derived_peaks("processor\t: 0\nmodel name\t: Mystery\n", cores=2)


def test_a_measurement_is_kept_for_its_key_only(settings: Settings) -> None:
    calls: list[str] = []

    def figures(name: str) -> dict[str, str]:
        calls.append(name)
        return {"name": name}

    assert measure.remembered({"a": 1}, lambda: figures("first")) == {"name": "first"}
    assert measure.remembered({"a": 1}, lambda: figures("again")) == {"name": "first"}
    assert measure.remembered({"a": 2}, lambda: figures("other")) == {"name": "other"}
    assert calls == ["first", "other"]


def test_what_a_busy_machine_reached_is_measured_again_when_it_is_calmer(settings: Settings) -> None:
    measure.remembered({"a": 1}, lambda: {"x": 1})
    (kept,) = (settings.home_path / "hardware").iterdir()
    record = json.loads(kept.read_text())
    kept.write_text(json.dumps({**record, "load": 2 * os.getloadavg()[0] + 100}))
    assert measure.remembered({"a": 1}, lambda: {"x": 2}) == {"x": 2}
    assert measure.remembered({"a": 1}, lambda: {"x": 3}) == {"x": 2}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": {"a": 1}}', "null"])
def test_a_damaged_record_is_measured_again(settings: Settings, damage: str) -> None:
    measure.remembered({"a": 1}, lambda: {"x": 1})
    (kept,) = (settings.home_path / "hardware").glob("*.json")
    kept.write_text(damage)
    assert measure.remembered({"a": 1}, lambda: {"x": 2}) == {"x": 2}
    assert json.loads(kept.read_text())["figures"] == {"x": 2}


def test_a_home_that_cannot_be_written_costs_only_the_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("MAINSPRING_HOME", str(in_the_way))
    assert measure.remembered({"a": 1}, lambda: {"x": 1}) == {"x": 1}
    assert "hardware measurement not kept" in caplog.text


def test_loopback_carries_data_in_both_directions(settings: Settings) -> None:
    link = measure.loopback()
    assert link.bytes_per_s > 1e7
    assert 1e-7 < link.latency_s < 0.1
    assert measure.loopback() == link
