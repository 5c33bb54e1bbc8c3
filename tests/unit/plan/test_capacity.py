"""Sizes of large public runs from round figures alone, and what does not fit said to."""

from dataclasses import replace

import pytest

from mainspring.hardware import catalog
from mainspring.plan.capacity import decode_tokens_per_s, memory_bytes, size_up, size_up_instance, total_flops
from mainspring.spec import Device, Instance, Site, WorkSize

A100 = Device(
    vendor="nvidia",
    name="A100",
    memory_bytes=80 << 30,
    memory_bytes_per_s=2.04e12,
    fp32_flops_per_s=1.95e13,
    bf16_flops_per_s=3.12e14,
    int8_ops_per_s=6.24e14,
    power_watts=400,
)
H100 = replace(A100, name="H100", bf16_flops_per_s=9.89e14, memory_bytes_per_s=3.35e12, power_watts=700)

# Parameters, active ones and tokens; the device; device-hours in millions, from the papers and model cards.
RUNS = {
    "GPT-3 175B": (175e9, 0.0, 300e9, A100, 0.748),
    "Llama 2 7B": (6.74e9, 0.0, 2e12, A100, 0.184),
    "Llama 2 70B": (69e9, 0.0, 2e12, A100, 1.72),
    "BLOOM 176B": (176e9, 0.0, 366e9, A100, 1.083),
    "Llama 3.1 405B": (405e9, 0.0, 15.6e12, H100, 30.84),
    "DeepSeek-V3": (671e9, 37e9, 14.8e12, H100, 2.664),
}


def hours(name: str) -> float:
    params, active, tokens, device, _ = RUNS[name]
    work = WorkSize(work="train", params=params, active=active, tokens=tokens)
    return size_up(work, device, site=Site(), devices=4096).device_hours


def test_at_least_four_of_six_public_runs_are_within_ten_per_cent_and_all_within_a_quarter():
    errors = {name: hours(name) / (1e6 * run[4]) - 1 for name, run in RUNS.items()}
    assert sum(abs(error) <= 0.10 for error in errors.values()) >= 4, errors
    assert all(abs(error) <= 0.25 for error in errors.values()), errors


def test_more_devices_take_less_time_and_the_same_energy():
    work = WorkSize(work="train", params=7e9, tokens=1e12)
    few, many = (size_up(work, H100, site=Site(), devices=count) for count in (64, 128))
    assert few.days == pytest.approx(2 * many.days)
    assert few.kwh == pytest.approx(many.kwh)
    assert few.device_hours * 700 * 0.85 * 1.2 / 1000 == pytest.approx(few.kwh)


def test_training_state_is_sixteen_bytes_a_parameter_and_the_least_number_holds_it():
    work = WorkSize(work="train", params=70e9, tokens=1e9)
    assert memory_bytes(work) == 1_120_000_000_000
    sized = size_up(work, A100, site=Site())
    assert sized.devices == sized.least == 15
    assert size_up(work, A100, site=Site(), devices=8).least == 15


def test_an_adapter_needs_little_memory_and_two_thirds_of_the_arithmetic():
    whole = WorkSize(work="finetune", params=70e9, tokens=1e9)
    small = replace(whole, adapter=0.01, bits=4)
    assert total_flops(small) == pytest.approx(total_flops(whole) * 4.02 / 6)
    assert memory_bytes(small) == pytest.approx(70e9 * (0.5 + 0.16))


def test_decoding_is_bound_by_memory_until_the_batch_is_large():
    one = WorkSize(work="serve", params=8e9, tokens=1e9)
    alone, method = decode_tokens_per_s(one, H100, 1)
    assert alone == pytest.approx(3.35e12 * 0.65 / 16e9)
    assert "memory speed" in method
    batched, _ = decode_tokens_per_s(replace(one, batch=64), H100, 1)
    assert batched == pytest.approx(64 * alone)
    crowd, method = decode_tokens_per_s(replace(one, batch=4096), H100, 1)
    assert "arithmetic" in method
    assert crowd < 4096 * alone


def test_a_served_token_of_an_8b_model_costs_about_what_was_measured():
    # ML.ENERGY 3.0: Llama 3.1 8B on one H100, batch 64: 0.12 to 0.20 J a token by the engine's version.
    work = WorkSize(work="serve", params=8e9, tokens=1e9, batch=64, context=1000, kv_bytes_per_token=131072)
    sized = size_up(work, H100, site=Site(pue=1.0))
    assert 0.06 < sized.kwh * 3.6e6 / 1e9 < 0.25


def test_a_diffusion_model_computes_every_step_of_every_image():
    work = WorkSize(work="serve", params=12e9, tokens=4096.0 * 1000, steps=28)
    assert total_flops(work) == 2 * 12e9 * 4096 * 1000 * 28
    sized = size_up(work, H100, site=Site())
    assert sized.days * 86400 / 1000 == pytest.approx(2 * 12e9 * 4096 * 28 / (9.89e14 * 0.5))


def test_serving_without_tokens_is_a_day_at_full_load():
    work = WorkSize(work="serve", params=8e9, batch=64)
    sized = size_up(work, H100, site=Site())
    assert sized.days == pytest.approx(1)
    assert sized.flops == pytest.approx(2 * 8e9 * sized.tokens_per_s * 86_400)
    images = size_up(WorkSize(work="serve", params=12e9, steps=28, answer=4096), H100, site=Site())
    assert images.tokens_per_s / 4096 == pytest.approx(9.89e14 * 0.5 / (2 * 12e9 * 4096 * 28))


def test_a_rate_of_requests_takes_as_many_replicas_as_keep_up_with_it_for_a_day():
    work = WorkSize(work="serve", params=70e9, batch=16, rate=50.0, prompt=1000, answer=200)
    alone = size_up(replace(work, rate=0.0), H100, site=Site())
    found = size_up(work, H100, site=Site())
    assert found.devices == found.least
    assert found.devices % alone.devices == 0
    assert found.tokens_per_s >= 50 * 200 > found.tokens_per_s - alone.tokens_per_s
    assert found.memory_bytes / found.devices == pytest.approx(alone.memory_bytes / alone.devices)
    assert (found.days, found.device_hours) == (pytest.approx(1), pytest.approx(24 * found.devices))
    assert any("50 requests a second" in method for method in found.methods)
    few = size_up(work, H100, site=Site(), devices=alone.devices)
    assert few.least == found.least > few.devices
    # Reading prompts takes time: without them the same devices write more.
    assert (
        size_up(replace(work, prompt=0), H100, site=Site(), devices=8).tokens_per_s
        > size_up(work, H100, site=Site(), devices=8).tokens_per_s
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 1.0},
        {"prompt": 5},
        {"answer": 0},
        {"params": float("inf")},
        {"params": 0.0},
        {"tokens": -1.0},
        {"active": 9e9},
        {"adapter": 0.0},
        {"bits": 0.0},
        {"steps": 0},
    ],
)
def test_figures_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must|at most|lies|at least"):
        WorkSize(**{"work": "train", "params": 1e9, "tokens": 1e9, **wrong})


def test_whole_machines_hold_what_their_devices_hold_together_and_cost_what_they_cost():
    rented = Instance(name="eight", device="H100", devices=8, price_usd_per_hour=40.0, source="a list")
    work = WorkSize(work="train", params=70e9, tokens=1e12)
    sized = size_up_instance(work, rented, H100, site=Site())
    assert (sized.instances, sized.devices, sized.least) == (2, 16, 15)
    assert sized.price_usd == pytest.approx(sized.device_hours * 5.0)
    assert "machine: a list" in sized.methods
    assert size_up_instance(work, rented, H100, site=Site(), devices=17).devices == 24
    assert size_up_instance(work, rented, H100, site=Site(price_usd_per_hour=1.0)).price_usd == sized.device_hours


def test_every_instance_of_the_catalogue_has_a_device_of_it_and_a_source():
    for instance in catalog.instances():
        assert catalog.find(instance.device).name == instance.device
        assert instance.source
