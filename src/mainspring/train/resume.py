"""Which checkpoints a run of training goes on from, and whether it may.

Checkpoints stay in the folder of the run that wrote the first of them; every continuation, and the continuation of a
continuation, writes there too. So "resume the last run" is right however often a training was interrupted.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mainspring.spec import TERMINAL, Failed, RunRecord, SpecError, TrainConfig, Unavailable
from mainspring.store import Store
from mainspring.train.marks import committed

LOOK_BACK = 200

log = logging.getLogger(__name__)


def checkpoints_of(store: Store, run_id: str) -> str:
    """The folder or URL of a run's checkpoints: where all its ranks can be, also when they share no disk."""
    return store.place(f"runs/{run_id}/checkpoints")


def owner_of(record: RunRecord) -> str:
    """The run in whose folder `record`'s checkpoints are: itself, or the one it went on from."""
    return str(json.loads(record.config_json).get("resume") or record.id)


def first_attempt(store: Store, run_id: str) -> str:
    """The run whose checkpoints a continuation of `run_id` shall use.

    Raises `SpecError` while one of that run's attempts is still at work, because two must not write the same files.
    """
    store.reap_dead_runs()
    record = store.run(run_id)
    if record.kind != "train":
        raise SpecError(f"run {record.id} is no training", hint="list those with mainspring ps --all --kind train")
    owner = owner_of(record)
    for other in store.runs(kind="train", limit=LOOK_BACK):
        if other.state not in TERMINAL and owner_of(other) == owner:
            raise SpecError(f"run {other.id} is still at it: {other.state}", hint=f"mainspring stop {other.id}")
    return owner


def check_unchanged(store: Store, run_id: str, config: TrainConfig) -> Mapping[str, Any]:
    """The notes in the newest checkpoint of run `run_id`; nothing when it has none, or none that can be read.

    Raises `SpecError` when it was trained with other numbers than those of `config`: its ranks would refuse it.
    """
    # Torch is imported by both, which is why the question whether a run may be resumed comes without it.
    from mainspring.train.loop import numerics
    from mainspring.train.place import MANIFEST, open_place

    place = open_place(checkpoints_of(store, run_id))
    try:
        notes = next((json.loads(place.read(f"{name}/{MANIFEST}"))["notes"] for name in place.committed()), {})
    except (OSError, ValueError, KeyError):
        return {}  # damaged: the ranks look for an older one
    then, now = notes.get("config", {}), numerics(config)
    changed = [f"{name} {then[name]} -> {now[name]}" for name in now if name in then and then[name] != now[name]]
    if changed:
        raise SpecError(
            f"cannot go on from run {run_id}: the configuration changed ({', '.join(changed)})",
            hint="undo the change, or leave --resume out to train anew",
        )
    return notes


def same_step(store: Store, run_id: str) -> str:
    """The newest earlier run of the same step of a flow, with the same inputs, that left checkpoints; "" for none."""
    key = _step_key(store.run(run_id))
    for record in store.runs(kind="step", limit=LOOK_BACK):
        interrupted = record.state in ("FAILED", "CANCELLED") and record.id != run_id
        if key and interrupted and _step_key(record) == key and _has_checkpoint(store, record.id):
            return record.id
    return ""


def _step_key(record: RunRecord) -> str:
    return str(json.loads(record.config_json).get("key", ""))


def can_resume(store: Store, record: RunRecord) -> bool:
    """Whether a training ended before its work was done and left a complete checkpoint."""
    unfinished = record.kind == "train" and record.state in ("FAILED", "CANCELLED")
    return unfinished and _has_checkpoint(store, owner_of(record))


@contextmanager
def tell_how_to_resume(store: Store, owner: str, run_id: str) -> Iterator[None]:
    """Add to a failure of `run_id` how to go on from the checkpoints of run `owner`, when there are some.

    The run to go on from is the one that failed if it has made some itself, else the one that it went on from: what
    made this one fail may be how it was started.
    """
    before = _left(store, owner) if owner != run_id else []
    try:
        yield
    except Failed as error:
        left = _left(store, owner)
        if left:
            last = run_id if left[0] not in before else owner
            how = f"to go on from the last checkpoint: mainspring train --resume {last}"
            error.hint = "\n".join(filter(None, (error.hint, how)))
        raise


def _left(store: Store, run_id: str) -> list[str]:
    """The complete checkpoints of a run, newest first; none when nobody can say: a failure is what counts then."""
    try:
        return committed(checkpoints_of(store, run_id))
    except Unavailable as silent:
        log.warning("cannot ask for checkpoints", extra={"run": run_id, "reason": str(silent)})
        return []


def _has_checkpoint(store: Store, run_id: str) -> bool:
    return bool(committed(checkpoints_of(store, run_id)))
