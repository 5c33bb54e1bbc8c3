"""How many devices, days, dollars and kilowatt-hours a piece of work takes, before there is a recipe for it.

Closed forms from the size of a model alone. Arithmetic: 6 FLOP per active parameter and token in training (Kaplan et
al. 2020), 4 for what is frozen in fine-tuning, 2 in inference. Time: arithmetic at the model FLOPs utilisation that
large public runs reached on the device's generation; decoding is bound by reading weights and cache instead. Memory: 16
bytes per trained parameter (ZeRO, Rajbhandari et al. 2020, section 3). For a plan of one's own model and cluster,
`plan.search` is exact to the rank; this answers within some ten per cent, and says by which method.
"""

import math
from dataclasses import replace

from mainspring.plan.memory import USABLE
from mainspring.spec import Device, Instance, Site, Sized, WorkSize

HOUR_S = 3600.0
DAY_H = 24.0
BYTES_PER_TRAINED = 16
# Medians of the utilisation that published device-hours imply on 6ND and the dense bf16 peak. Ampere and older: GPT-3
# 175B 0.375, Llama 2 7B 0.391 and 70B 0.429, BLOOM 176B 0.318. Hopper and newer, whose networks lag their arithmetic:
# Llama 3.1 405B 0.345, DeepSeek-V3 0.346.
UTILISATION, UTILISATION_FAST = 0.383, 0.3455
FAST_FLOPS_PER_S = 7e14
# Of the memory speed that decoding reaches, and of the peak in prefill: the usual range of paged-attention engines is
# 0.6 to 0.8 and 0.4 to 0.6.
BANDWIDTH_SHARE, PREFILL_SHARE = 0.65, 0.5
# Mean power over rated power under load; training clusters of A100 and H100 report 0.75 to 0.9 of the rating.
POWER_SHARE = 0.85


def size_up(work: WorkSize, device: Device, *, site: Site, devices: int = 0, utilisation: float = 0.0) -> Sized:
    """What `work` takes on `devices` of this kind, or on as few as hold it and keep up with what is asked of them.

    With fewer devices than that, the figures are those of the number asked for and `least` says what is missing.
    """
    if device.bf16_flops_per_s <= 0 or devices < 0 or not 0 <= utilisation <= 1:
        raise ValueError(f"devices cannot be {devices}, nor a utilisation {utilisation:g}")
    held = fewest(replace(work, rate=0.0), device)
    least = fewest(work, device)
    need, count = memory_bytes(work) * (least // held), devices or least
    if work.work == "serve":
        per_s, method = served_tokens_per_s(work, device, count)
        asked = min(per_s, work.rate * work.answer or per_s)
        work = replace(work, tokens=work.tokens or asked * DAY_H * HOUR_S)
        seconds = work.tokens / asked
    else:
        share = utilisation or usual_utilisation(device)
        seconds = total_flops(work) / (device.bf16_flops_per_s * share * count)
        per_s = work.tokens / seconds
        said = "given" if utilisation else "median of public runs on its generation, with their networks"
        method = f"time: arithmetic at {share:.1%} of {device.bf16_flops_per_s / 1e12:g} TFLOP/s ({said})"
    flops = total_flops(work)
    hours = seconds / HOUR_S * count
    kwh = hours * device.power_watts * POWER_SHARE * site.pue / 1000
    return Sized(
        device=device.name,
        devices=count,
        least=least,
        flops=flops,
        utilisation=flops / (seconds * count * device.bf16_flops_per_s),
        memory_bytes=need,
        device_memory_bytes=device.memory_bytes,
        device_hours=hours,
        days=seconds / HOUR_S / DAY_H,
        kwh=kwh,
        co2_kg=kwh * site.carbon_grams_per_kwh / 1000,
        price_usd=hours * (site.price_usd_per_hour or device.price_usd_per_hour),
        tokens_per_s=per_s,
        methods=(*_methods(work, device, site), method),
    )


def fewest(work: WorkSize, device: Device) -> int:
    """The fewest devices that hold the work; in serving, as many such replicas as keep up with the rate."""
    held = max(1, -(-memory_bytes(work) // int(USABLE * device.memory_bytes)))
    if not work.rate:
        return held
    one, _ = served_tokens_per_s(work, device, held)
    return held * math.ceil(work.rate * work.answer / one)


def size_up_instance(
    work: WorkSize, instance: Instance, device: Device, *, site: Site, devices: int = 0, utilisation: float = 0.0
) -> Sized:
    """The same on whole machines: as many as hold the work, or as have `devices` between them."""
    priced = site
    if not site.price_usd_per_hour and instance.price_usd_per_hour:
        priced = replace(site, price_usd_per_hour=instance.price_usd_per_hour / instance.devices)
    machines = max(1, -(-(devices or fewest(work, device)) // instance.devices))
    found = size_up(work, device, site=priced, devices=machines * instance.devices, utilisation=utilisation)
    where = f"machine: {instance.source}" if instance.source else f"machine: {instance.name} as given"
    return replace(found, instance=instance.name, instances=machines, methods=(*found.methods, where))


def total_flops(work: WorkSize) -> float:
    """Arithmetic of the whole piece of work. Attention's quadratic part is left out: below 10 % up to 8 k tokens."""
    active = work.active or work.params
    if work.work == "serve":
        return 2 * active * work.tokens * (work.steps + work.prompt / work.answer)
    # What is frozen is not differentiated by its own weights: forward, and backward through it.
    per_param = 6.0 if work.work == "train" else 4.0 + 2.0 * work.adapter
    return per_param * active * work.tokens


def memory_bytes(work: WorkSize) -> int:
    """What must be held at once, over all devices together; activations are recomputed, and small beside it."""
    weights = work.params * work.bits / 8
    if work.work == "serve":
        return round(weights + cache_bytes(work))
    trained = work.params * (work.adapter if work.work == "finetune" else 1.0)
    return round(BYTES_PER_TRAINED * trained + (weights if trained < work.params else 0.0))


def cache_bytes(work: WorkSize) -> float:
    """Key-value cache of all sequences; of a request's tokens where no other context is given."""
    context = work.context or (work.prompt + work.answer if work.prompt else 0)
    return work.kv_bytes_per_token * context * work.batch


def usual_utilisation(device: Device) -> float:
    """The share of the dense peak that large public runs reached on devices of this generation."""
    return UTILISATION_FAST if device.bf16_flops_per_s >= FAST_FLOPS_PER_S else UTILISATION


def served_tokens_per_s(work: WorkSize, device: Device, count: int) -> tuple[float, str]:
    """Tokens written per second, with the reading of prompts between; latent tokens of finished images."""
    per_s, method = decode_tokens_per_s(work, device, count)
    active = work.active or work.params
    prefill = 2 * active * work.prompt / (device.bf16_flops_per_s * PREFILL_SHARE * count)
    said = f"; prompts at {PREFILL_SHARE:.0%} of the peak" if work.prompt else ""
    return work.answer / (work.answer * work.steps / per_s + prefill), method + said


def decode_tokens_per_s(work: WorkSize, device: Device, count: int) -> tuple[float, str]:
    """Tokens per second and step: a step reads weights and cache and writes one token of each of `batch`.

    A diffusion model has no cache and computes all latent tokens at once, so arithmetic bounds it.
    """
    active = work.active or work.params
    # A batch of many tokens meets most experts of a mixture: all weights are read.
    read = work.params * work.bits / 8 if work.batch > 1 else active * work.bits / 8
    reading = (read + cache_bytes(work)) / (device.memory_bytes_per_s * BANDWIDTH_SHARE * count)
    computing = 2 * active * work.batch / (device.bf16_flops_per_s * PREFILL_SHARE * count)
    if work.steps > 1 or computing > reading:
        per_s = device.bf16_flops_per_s * PREFILL_SHARE * count / (2 * active)
        return per_s, f"time: arithmetic at {PREFILL_SHARE:.0%} of the peak"
    return work.batch / reading, f"time: weights and cache read once a step at {BANDWIDTH_SHARE:.0%} of memory speed"


def _methods(work: WorkSize, device: Device, site: Site) -> tuple[str, ...]:
    """Where the other figures come from."""
    arithmetic = {
        "train": "arithmetic: 6 x active parameters x tokens",
        "finetune": "arithmetic: 4 x active parameters x tokens, and 2 more for what is trained",
        "serve": "arithmetic: 2 x active parameters x tokens"
        + (" x steps" if work.steps > 1 else "")
        + (", prompts included" if work.prompt else ""),
    }[work.work]
    served = (
        "weights and key-value cache" if work.steps == 1 else "weights, of the model that is called at each step only"
    )
    held = served if work.work == "serve" else "16 bytes per trained parameter, frozen weights"
    rate = (f"load: {work.rate:g} requests a second, each {work.prompt} tokens read and {work.answer} written",)
    price = "given" if site.price_usd_per_hour or device.price_usd_per_hour else "none given, so no price"
    return (
        arithmetic,
        *(rate if work.rate else ()),
        f"memory: {held}; {USABLE:.0%} of a device is usable",
        f"energy: {POWER_SHARE:.0%} of the rated {device.power_watts:g} W, times a PUE of {site.pue:g}, estimated",
        f"CO2: {site.carbon_grams_per_kwh:g} g per kWh",
        f"price: {price}",
        f"device: {device.source}",
    )
