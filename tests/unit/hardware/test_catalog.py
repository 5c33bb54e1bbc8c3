"""The catalogue: every entry is complete, named as drivers report it, and a typo meets the nearest name."""

import dataclasses

import pytest

from mainspring.hardware import catalog
from mainspring.spec import SpecError


def test_every_entry_names_its_source_and_keeps_physics() -> None:
    for name, entry in catalog.entries().items():
        device = entry.device
        assert device.name == name
        assert len(device.source) > 10, name
        assert device.bf16_flops_per_s >= device.fp32_flops_per_s, name
        assert 50 <= device.power_watts <= 2000, name
        # Every accelerator since 2016 needs between 10 and 500 bf16 FLOP for a byte; a unit slip lands outside.
        assert 10 < device.ridge_flops_per_byte < 500, name
        assert entry.link.bytes_per_s >= 10e9, name


@pytest.mark.parametrize(
    ("name", "tflops", "gigabytes_per_s"),
    [
        ("P100-SXM2-16GB", 21.2, 732),
        ("V100-SXM2-32GB", 125, 900),
        ("A100-SXM4-40GB", 312, 1555),
        ("A100-SXM4-80GB", 312, 2039),
        ("H100-SXM5-80GB", 989, 3350),
        ("H200-SXM5-141GB", 989, 4800),
        ("B200-180GB", 2250, 7672),
        ("L4", 121, 300),
        ("MI300X", 1307.4, 5300),
    ],
)
def test_well_known_devices_have_their_dense_figures(name: str, tflops: float, gigabytes_per_s: float) -> None:
    device = catalog.find(name)
    assert device.bf16_flops_per_s == pytest.approx(tflops * 1e12)
    assert device.memory_bytes_per_s == pytest.approx(gigabytes_per_s * 1e9)


def test_a_device_is_found_in_any_spelling_and_by_its_drivers_name() -> None:
    wanted = catalog.find("H100-SXM5-80GB")
    assert catalog.find("h100 sxm5 80gb") is wanted
    assert catalog.find("NVIDIA H100 80GB HBM3") is wanted
    assert catalog.find("h200").name == "H200-SXM5-141GB"


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("A100-80-SXM", "A100-SXM4-80GB"),
        ("V100-16", "V100-SXM2-16GB"),
        ("H800-80-SXM", "H800-SXM5-80GB"),
        ("A100-PCIe", "A100-PCIE-80GB"),
        ("B200", "B200-180GB"),
    ],
)
def test_a_device_is_found_by_words_that_fit_no_other(short: str, name: str) -> None:
    assert catalog.find(short).name == name


@pytest.mark.parametrize("several", ["A100", "A100-80", "V100-SXM"])
def test_words_that_fit_several_devices_are_refused_with_their_names(several: str) -> None:
    with pytest.raises(SpecError, match=f"no device '{several}'") as caught:
        catalog.find(several)
    assert "nearest: " + several[:4] in str(caught.value.hint)


def test_no_two_entries_answer_to_one_name() -> None:
    owners: dict[str, str] = {}
    for name, entry in catalog.entries().items():
        for alias in (name, *entry.matches):
            assert owners.setdefault(alias.lower(), name) == name
            assert catalog.find(alias) == entry.device


def test_an_unknown_device_gets_the_nearest_and_the_way_round() -> None:
    with pytest.raises(SpecError, match="no device 'H100-SXM6-80GB'") as caught:
        catalog.find("H100-SXM6-80GB")
    assert "H100-SXM5-80GB" in caught.value.hint
    assert "measured" in caught.value.hint


def test_a_family_name_is_ambiguous_and_lists_its_members() -> None:
    with pytest.raises(SpecError) as caught:
        catalog.find("A100")
    for member in ("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-80GB"):
        assert member in caught.value.hint


def test_a_driver_name_nobody_listed_matches_nothing() -> None:
    assert catalog.matching("NVIDIA X9000") is None


def test_an_unknown_link_gets_the_nearest() -> None:
    assert catalog.find_link("nvlink4").bytes_per_s == 450e9
    with pytest.raises(SpecError) as caught:
        catalog.find_link("nvlink44")
    assert "nvlink4" in caught.value.hint


def test_the_catalogue_cannot_be_changed_by_a_reader() -> None:
    with pytest.raises(TypeError):
        catalog.devices()["mine"] = catalog.find("L4")  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        catalog.find("L4").name = "L5"  # type: ignore[misc]
