"""How far are the device-hours that `mainspring estimate` gives from those of large public training runs?

Six runs whose device-hours are published: parameters, active parameters and tokens go in, nothing else. The usual
utilisation of a generation is the median over these very runs, so each is estimated a second time with the medians of
the others only, as if it had not been published yet. DeepSeek-V3 trained in fp8 and is counted on the bf16 peak.

Ceiling: simulators with a model of every operator report 4 to 9 % on single nodes and 15 % on 512 devices.

Run: python benchmarks/estimate_runs.py [--quick]
"""

import statistics
from dataclasses import dataclass

from mainspring.hardware import catalog
from mainspring.plan.capacity import FAST_FLOPS_PER_S, size_up, total_flops
from mainspring.spec import Device, Site, WorkSize
from measure import Findings, parse_options, publish

A100, H100 = "A100-SXM4-80GB", "H100-SXM5-80GB"
HOUR_S = 3600.0
WITHIN = 0.10


@dataclass(frozen=True, slots=True)
class Published:
    """A run: parameters, those one token uses, tokens, and the device-hours that its paper or model card states."""

    name: str
    params: float
    active: float
    tokens: float
    device: str
    hours: float

    @property
    def work(self) -> WorkSize:
        return WorkSize(work="train", params=self.params, active=self.active, tokens=self.tokens)


RUNS = (
    Published("GPT-3 175B", 175e9, 0.0, 300e9, A100, 0.748e6),
    Published("Llama 2 7B", 6.74e9, 0.0, 2e12, A100, 0.184e6),
    Published("Llama 2 70B", 69e9, 0.0, 2e12, A100, 1.72e6),
    Published("BLOOM 176B", 176e9, 0.0, 366e9, A100, 1.083e6),
    Published("Llama 3.1 405B", 405e9, 0.0, 15.6e12, H100, 30.84e6),
    Published("DeepSeek-V3", 671e9, 37e9, 14.8e12, "H800-SXM5-80GB", 2.664e6),
)


def reached(run: Published) -> float:
    """The share of the dense peak that the published hours imply."""
    return total_flops(run.work) / (run.hours * HOUR_S * catalog.find(run.device).bf16_flops_per_s)


def fast(device: Device) -> bool:
    return device.bf16_flops_per_s >= FAST_FLOPS_PER_S


def error_of(run: Published, *, utilisation: float = 0.0) -> float:
    """The estimate over the published hours, less one."""
    device = catalog.find(run.device)
    return size_up(run.work, device, site=Site(), devices=1024, utilisation=utilisation).device_hours / run.hours - 1


def main() -> None:
    parse_options(__doc__)
    rows: list[tuple[str, ...]] = []
    errors: dict[str, float] = {}
    unseen: dict[str, float] = {}
    for run in RUNS:
        kind = fast(catalog.find(run.device))
        others = [reached(each) for each in RUNS if each is not run and fast(catalog.find(each.device)) == kind]
        errors[run.name] = error_of(run)
        unseen[run.name] = error_of(run, utilisation=statistics.median(others))
        rows.append(
            (
                run.name,
                f"{run.hours / 1e6:.3g} M",
                f"{reached(run):.1%}",
                f"{run.hours * (1 + errors[run.name]) / 1e6:.3g} M",
                f"{errors[run.name]:+.1%}",
                f"{unseen[run.name]:+.1%}",
            )
        )
    good, blind = (sum(abs(error) <= WITHIN for error in found.values()) for found in (errors, unseen))
    publish(
        Findings(
            benchmark="estimate_runs",
            headline=f"{good} of six public training runs within 10 % (asked: 4), {blind} when estimated from the "
            "others alone",
            columns=("run", "published", "of the peak", "estimated", "error", "error, from the others"),
            rows=tuple(rows),
            numbers={"within": good, "within_from_others": blind, "worst": max(map(abs, errors.values()))},
            spec={"within": WITHIN},
            samples={"errors": errors, "from_others": unseen},
        ),
        packages=(),
    )


if __name__ == "__main__":
    main()
