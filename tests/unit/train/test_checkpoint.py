"""Checkpoints: never torn, never half there, resumed bit for bit on any number of ranks."""

import functools
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from training_gang import (
    CONFIG,
    LADING,
    VOCAB,
    Order,
    Outcome,
    RandomBatches,
    counting,
    plan_of,
    recipe_of,
    run_gang,
    task_of,
    train_rank,
)

from mainspring.spec import Mesh, SpecError, Unavailable
from mainspring.train.checkpoint import Checkpoints, Saved
from mainspring.train.loop import Trainer, TrainingData
from mainspring.train.marks import MARKER
from mainspring.train.parallel import Group
from mainspring.train.place import MANIFEST

SINGLE, DP2, FSDP2 = Mesh(), Mesh(dp=2), Mesh(fsdp=2)
SAVING = replace(CONFIG, steps=6, checkpoint_every=2)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Path]:
    """A group of one rank, and a folder."""
    group = Group(task_of(folder=tmp_path))
    group.join(0)
    yield tmp_path
    group.leave()


@pytest.fixture(params=["folder", "bucket"])
def scheme(request: pytest.FixtureRequest) -> str:
    """What to put before a path to reach it as a folder, or as fsspec reaches an object store."""
    return "" if request.param == "folder" else "local://"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mesh, str], Outcome]:
    """The uninterrupted run of a mesh and a model, trained once."""

    @functools.cache
    def train(mesh: Mesh, model: str = "decoder") -> Outcome:
        order = Order(plan_of(mesh), tmp_path_factory.mktemp("straight"), model=model, config=SAVING)
        return run(order) if mesh.world > 1 else train_rank(task_of(folder=Path(order.folder)), order)

    return train


def checkpoints_in(folder: Path | str, *, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, rank=0, world=1, keep=keep)


def committed(folder: Path) -> list[str]:
    """The folders with a mark, without what a bucket appends to make their names unique."""
    return sorted(path.parent.name[:13] for path in folder.glob(f"step-*/{MARKER}"))


def run(order: Order) -> Outcome:
    outcome = run_gang(order)[0]
    assert outcome is not None
    assert not outcome.error
    return outcome


def test_no_tensor_is_torn_when_everything_changes_right_after_the_copy(alone):
    """The state is overwritten as soon as the trainer would be allowed to: 0 torn of 1,000 tensors."""
    checkpoints = checkpoints_in(alone)
    torn = 0
    for step in range(1, 6):
        state = {f"t{i}": torch.full((128, 128), float(step * 1000 + i)) for i in range(200)}
        checkpoints.save(step, state, {})
        checkpoints.wait_staged()
        for tensor in state.values():
            tensor.fill_(-1.0)
        checkpoints.wait()
        found = {name: torch.empty(128, 128) for name in state}
        saved = checkpoints.newest()
        assert saved is not None
        checkpoints.load(saved, found)
        torn += sum(not (found[f"t{i}"] == step * 1000 + i).all() for i in range(200))
    assert torn == 0
    assert checkpoints.errors == []
    checkpoints.close()


def test_the_trainer_waits_for_the_copy_before_it_updates(tmp_path):
    """The optimiser adds one to a 40 MB tensor that costs no forward, so an update overtakes any copy left alone."""
    config = replace(CONFIG, steps=3, checkpoint_every=1, keep_checkpoints=3)
    loaded = recipe_of(Order(plan_of(microbatch=8), tmp_path, model="laden", loss="mean", config=config))
    loaded = replace(loaded, recipe=replace(loaded.recipe, optimizer=counting))
    data = TrainingData(train=RandomBatches(), facts={"vocab": VOCAB})
    trainer = Trainer(loaded, plan_of(microbatch=8), Group(task_of(folder=tmp_path)), data=data, folder=tmp_path)
    assert len(list(trainer.steps())) == 3
    checkpoints = checkpoints_in(tmp_path)
    for step in (1, 2, 3):
        found = torch.empty(LADING)
        checkpoints.load(Saved(step=step, where=str(tmp_path / f"step-{step:08d}"), notes={}), {"model.lading": found})
        assert (found == step).all(), f"the checkpoint of step {step} holds {found.unique()}"
    checkpoints.close()
    trainer.close()


def test_a_save_returns_before_the_file_is_on_disk_and_the_previous_one_stays_until_then(alone):
    checkpoints = checkpoints_in(alone, keep=1)
    state = {"big": torch.ones(4_000_000)}
    checkpoints.save(1, state, {})
    checkpoints.wait()
    checkpoints.save(2, state, {})
    assert committed(alone) == ["step-00000001"]
    checkpoints.wait()
    assert committed(alone) == ["step-00000002"]
    checkpoints.close()


@pytest.mark.parametrize("mesh", [DP2, FSDP2], ids=["ddp", "zero3"])
def test_a_run_killed_and_resumed_repeats_the_uninterrupted_run_bit_for_bit(tmp_path, mesh, straight):
    """The replicated one in a folder, the sharded one in a bucket."""
    expected = straight(mesh, "dropped")
    place = tmp_path if mesh == DP2 else f"local://{tmp_path}"
    order = Order(plan_of(mesh), place, model="dropped", config=SAVING, waits_for_saves=True)
    victim, survivor = (run_gang(replace(order, kill_at=5, victim=1))[rank] for rank in (1, 0))
    assert victim is None
    assert survivor is not None
    assert survivor.error
    resumed = run(order)
    assert resumed.resumed_at == 4
    assert resumed.steps == expected.steps[4:]
    for name, value in expected.state.items():
        np.testing.assert_array_equal(resumed.state[name], value)


@pytest.mark.parametrize(
    ("first", "then"), [(FSDP2, SINGLE), (SINGLE, FSDP2), (DP2, FSDP2)], ids=["2-to-1", "1-to-2", "ddp-to-zero3"]
)
def test_a_run_resumes_on_another_world_size(tmp_path, first, then, straight):
    expected = straight(SINGLE)
    order = Order(plan_of(first), tmp_path / "moved", config=SAVING, kill_at=5, waits_for_saves=True)
    assert run_gang(order)[0] is None
    moved = run(replace(order, plan=plan_of(then), kill_at=0))
    assert moved.resumed_at == 4
    np.testing.assert_allclose(moved.losses, expected.losses[4:], atol=1e-5)
    for name, value in expected.state.items():
        np.testing.assert_allclose(moved.state[name], value, atol=1e-5)


@pytest.mark.parametrize("damage", ["flip", "lose", "manifest", "marker", "noise"])
def test_a_damaged_checkpoint_is_passed_over_with_a_log_line(tmp_path, caplog, damage, scheme):
    order = Order(plan_of(), f"{scheme}{tmp_path}", config=SAVING)
    straight = train_rank(task_of(folder=tmp_path), order)
    (newest,) = tmp_path.glob("step-00000006*")
    data = next(newest.glob("*.distcp"))
    if damage == "flip":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "lose":
        data.unlink()
    elif damage == "manifest":
        (newest / MANIFEST).write_text("{}")
    elif damage == "noise":
        (newest / MARKER).write_bytes(b"\xff\xfe")
    else:
        (newest / MARKER).unlink()
    with caplog.at_level(logging.WARNING):
        resumed = train_rank(task_of(folder=tmp_path), order)
    assert resumed.resumed_at == 4
    assert resumed.steps == straight.steps[4:]
    assert ("falling back" in caplog.text) == (damage != "marker")
    assert committed(tmp_path) == ["step-00000004", "step-00000006"]
    assert len(list(tmp_path.iterdir())) == 2, "what was damaged has made room"


def test_only_the_newest_checkpoints_are_kept(tmp_path, scheme):
    config = replace(SAVING, checkpoint_every=1, keep_checkpoints=3)
    train_rank(task_of(folder=tmp_path), Order(plan_of(), f"{scheme}{tmp_path}", config=config))
    assert [path.name[:13] for path in sorted(tmp_path.iterdir())] == [f"step-{step:08d}" for step in (4, 5, 6)]


def test_a_full_disk_on_one_rank_is_recorded_and_training_goes_on(tmp_path, straight):
    order = Order(plan_of(FSDP2), tmp_path / "full", config=SAVING, full_at=3, victim=1)
    outcomes = run_gang(order)
    for outcome in outcomes:
        assert outcome is not None
        assert not outcome.error
        assert outcome.steps == straight(FSDP2).steps
        assert [error.split(":")[0] for error in outcome.save_errors] == ["step 4", "step 6"]
    assert committed(tmp_path / "full") == ["step-00000002"]
    alone = Order(plan_of(), tmp_path / "full", config=SAVING)
    assert train_rank(task_of(folder=tmp_path), alone).resumed_at == 2


def test_a_rank_that_cannot_read_back_what_it_saved_spoils_that_checkpoint_alone(tmp_path, straight):
    """The other rank does not wait for it for ever, nor takes what it says about the next one for an answer."""
    outcomes = run_gang(Order(plan_of(FSDP2), tmp_path, config=SAVING, unreadable_until=4, victim=1))
    for outcome in outcomes:
        assert outcome is not None
        assert not outcome.error
        assert outcome.steps == straight(FSDP2).steps
        (told,) = outcome.save_errors
        assert told.startswith("step 2: Unavailable: rank 1 cannot read back what it wrote")
    assert committed(tmp_path) == ["step-00000004", "step-00000006"]


def test_a_changed_configuration_is_not_resumed_but_a_changed_cadence_is(tmp_path):
    order = Order(plan_of(), tmp_path, config=SAVING)
    train_rank(task_of(folder=tmp_path), order)
    faster = replace(order, config=replace(SAVING, lr=0.5))
    assert "lr 0.01 -> 0.5" in train_rank(task_of(folder=tmp_path), faster).error
    chattier = replace(order, config=replace(SAVING, log_every=3, checkpoint_every=1))
    assert train_rank(task_of(folder=tmp_path), chattier).resumed_at == 6


def test_a_checkpoint_of_another_model_is_refused(alone):
    checkpoints = checkpoints_in(alone)
    checkpoints.save(1, {"a": torch.ones(3)}, {})
    checkpoints.wait()
    saved = checkpoints.newest()
    assert saved is not None
    with pytest.raises(SpecError, match="does not fit this model"):
        checkpoints.load(saved, {"b": torch.ones(3)})
    checkpoints.close()


def test_what_a_killed_save_left_is_removed_and_never_resumed_from(alone, scheme):
    checkpoints = checkpoints_in(f"{scheme}{alone}")
    checkpoints.save(1, {"a": torch.ones(3)}, {})
    checkpoints.close()
    (whole,) = alone.iterdir()
    hidden, unmarked = alone / ".step-00000002", alone / "step-00000003"
    for copy in (hidden, unmarked):
        shutil.copytree(whole, copy)
        (copy / MARKER).unlink()
    again = checkpoints_in(f"{scheme}{alone}")
    saved = again.newest()
    assert saved is not None
    assert saved.step == 1
    assert not hidden.exists()
    assert not list(unmarked.glob("*"))
    again.close()
    assert dist.is_initialized()


def test_a_store_that_does_not_answer_is_no_reason_to_begin_anew(alone):
    """Damage is passed over; a network that is down must not be taken for damage of every checkpoint."""
    checkpoints = checkpoints_in(f"local://{alone}")
    checkpoints.save(1, {"a": torch.ones(3)}, {})
    checkpoints.wait()
    (manifest,) = alone.glob(f"*/{MANIFEST}")
    manifest.unlink()
    manifest.mkdir()  # a client's error that is not about a missing file
    with pytest.raises(Unavailable, match="cannot read"):
        checkpoints.newest()
    checkpoints.close()


def test_an_upload_of_a_dead_attempt_cannot_reach_into_a_later_checkpoint(alone):
    first, second = (checkpoints_in(f"local://{alone}", keep=5) for _ in range(2))
    first.save(1, {"a": torch.ones(3)}, {})
    first.wait()
    second.save(1, {"a": torch.zeros(3)}, {})
    second.close()
    found = {"a": torch.full((3,), -1.0)}
    saved = first.newest()
    assert saved is not None
    first.load(saved, found)
    assert found["a"].tolist() == [0, 0, 0]
    assert len(list(alone.iterdir())) == 1, "a step has one checkpoint, the one that was committed last"
    first.close()
