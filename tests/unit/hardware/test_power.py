"""Energy: counters where there are any, an estimate that says so where there are none."""

from pathlib import Path

import pytest

from mainspring.hardware.devices.cpu import CpuBackend
from mainspring.hardware.power import Meter
from mainspring.hardware.probe import probe_node
from mainspring.hardware.rapl import Counter, limit_watts
from mainspring.spec import Settings, SpecError
from mainspring.testing.machines import build_cluster, build_device

NODE = build_cluster((build_device(power_watts=300.0), 2, 1)).nodes[0]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Answers(CpuBackend):
    """A backend whose devices have counters that a test moves, or none and a fixed utilisation."""

    def __init__(self, joules: list[float | None], busy: float = 0.5) -> None:
        super().__init__()
        self.counters = joules
        self.busy = busy

    def energy(self, index: int) -> tuple[float, str] | None:
        joules = self.counters[index]
        return None if joules is None else (joules, "nvml_energy")

    def utilisation(self, index: int) -> float:
        return self.busy


def test_counters_are_read_and_their_method_named() -> None:
    clock, answers = Clock(), Answers([1000.0, 50.0])
    meter = Meter(NODE, answers=answers, clock=clock)
    meter.start()
    clock.now_s += 10
    answers.counters = [1600.0, 250.0]
    energy = meter.stop()
    assert (energy.joules, energy.seconds, energy.watts) == (800.0, 10.0, 80.0)
    assert energy.methods == ("nvml_energy",)


def test_without_counters_rated_power_times_utilisation_is_called_an_estimate() -> None:
    clock, answers = Clock(), Answers([None, 50.0])
    meter = Meter(NODE, answers=answers, clock=clock)
    meter.start()
    clock.now_s += 10
    energy = meter.read()
    assert energy.joules == 300.0 * 0.5 * 10
    assert energy.methods == ("estimate", "nvml_energy")
    clock.now_s += 10
    answers.busy = 1.0
    assert meter.read().joules == 300.0 * (0.5 * 10 + 1.0 * 10)


def test_a_meter_that_was_not_started_says_so() -> None:
    with pytest.raises(SpecError, match="not started"):
        Meter(NODE, answers=Answers([None, None])).read()


def test_work_on_this_machine_costs_energy(settings: Settings) -> None:
    with Meter(probe_node()) as meter:
        total = sum(range(6_000_000))
        energy = meter.read()
    assert total > 0
    assert energy.joules > 0
    assert set(energy.methods) <= {"rapl", "nvml_energy", "estimate"}


def package(root: Path, number: int, *, joules: float, name: str = "package-0", limit_watts: float = 250) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")  # 1000 J
    (folder / "constraint_0_power_limit_uw").write_text(f"{round(limit_watts * 1e6)}\n")
    return folder


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    package(tmp_path, 0, joules=900)
    package(tmp_path, 1, joules=10)
    package(tmp_path, 2, joules=5, name="psys")  # contains the packages: counting it would count them twice
    counter = Counter(tmp_path)
    package(tmp_path, 0, joules=50)  # wrapped at 1000: 150 J were used
    package(tmp_path, 1, joules=30)
    package(tmp_path, 2, joules=500, name="psys")
    assert counter.joules() == pytest.approx(170)
    assert counter.joules() == pytest.approx(170)
    assert limit_watts(tmp_path) == 500


def test_a_machine_without_rapl_has_no_counter(tmp_path: Path) -> None:
    assert Counter(tmp_path / "none").joules() is None
    assert limit_watts(tmp_path / "none") is None
