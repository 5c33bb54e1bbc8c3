"""Plans of an earlier format are read as today's; what cannot be read says so."""

import json

import pytest

from mainspring.spec import MemoryEstimate, Mesh, Plan, SpecError, Stage, TimeEstimate
from mainspring.store import parse

NOTHING = MemoryEstimate(params_bytes=0, grads_bytes=0, optimizer_bytes=0, activations_bytes=0, logits_bytes=0)


def plan(**changes: object) -> Plan:
    values = {
        "model": "m",
        "cluster": "c",
        "mesh": Mesh(dp=2, fsdp=2),
        "stages": (Stage(blocks=4, device="X1", ranks=(0, 1, 2, 3), microbatches=(1, 1, 1, 1), recompute="full"),),
        "global_batch": 4,
        "microbatch": 1,
        "seq_len": 128,
        "precision": "bf16",
        "memory": NOTHING,
        "device_memory_bytes": 1,
        "time": TimeEstimate(compute_s=1.0, communication_s=0.0, bubble_s=0.0, optimizer_s=0.0),
        "steps": 1,
        "watts": 0.0,
        "price_usd_per_hour": 0.0,
        "mfu": 0.5,
        "objective": "time",
        "zero": 3,
    }
    return Plan(**{**values, **changes})


def first_format(found: Plan, *, regather: bool) -> dict[str, object]:
    """`found` as the first format wrote it."""
    document = parse.to_dict(found)
    for name in ("zero", "schedule", "sequence_parallel", "replicate", "traffic"):
        del document[name]
    for stage in document["stages"]:
        for name in ("first", "recompute", "forward_s", "backward_s", "send_s", "memory"):
            del stage[name]
    return document | {"format": 1, "recompute": "full", "reshard_after_forward": regather}


@pytest.mark.parametrize("zero", [2, 3])
def test_a_plan_of_the_first_format_is_read_as_todays(zero: int) -> None:
    today = plan(zero=zero)
    assert parse.read_dict(first_format(today, regather=zero == 3), Plan) == today


def test_a_plan_of_a_later_format_is_refused() -> None:
    document = parse.to_dict(plan()) | {"format": 99}
    with pytest.raises(SpecError, match="the plan has format 99, this version reads 2: plan again"):
        parse.read_dict(document, Plan)


def test_text_that_is_no_plan_is_told_what_a_plan_needs() -> None:
    with pytest.raises(SpecError, match="mesh: is required"):
        parse.read_json(json.dumps({"format": 1}), Plan)
