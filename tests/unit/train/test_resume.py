"""Which checkpoints a continuation uses: those of the first attempt, however often training was interrupted."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from mainspring.spec import Failed, Settings, SpecError, TrainConfig
from mainspring.store import Store
from mainspring.train import resume
from mainspring.train.loop import numerics
from mainspring.train.marks import MARKER


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[Store]:
    """A store with its checkpoints on this disk, and one with them on an object store."""
    url = "" if request.param == "folder" else f"local://{tmp_path / 'bucket'}"
    with Store.open(replace(settings, artifacts_url=url)) as opened:
        yield opened


def attempt(store: Store, *, kind: str = "train", state: str = "FAILED", saved: bool = False, **config: object) -> str:
    """A recorded run that has ended in `state`, with a checkpoint when it has `saved` one."""
    run = store.start_run(kind, "x", config=config).id
    store.set_run_state(run, "RUNNING")
    if state != "RUNNING":
        store.set_run_state(run, state)  # pyright: ignore[reportArgumentType]
    if saved:
        write(store, run, MARKER)
    return run


def write(store: Store, run: str, name: str) -> None:
    """A file of a checkpoint of `run`, where its ranks would put it."""
    path = Path(resume.checkpoints_of(store, run).removeprefix("local://")) / "step-00000010-1f3a5c7e" / name
    path.parent.mkdir(parents=True)
    path.write_text("x")


def test_a_continuation_of_a_continuation_uses_the_checkpoints_of_the_first_attempt(store: Store) -> None:
    first = attempt(store, saved=True, resume="")
    second = attempt(store, resume=first)
    third = attempt(store, resume=resume.first_attempt(store, second))
    assert resume.first_attempt(store, third[-8:]) == first
    assert resume.can_resume(store, store.run(third))


def test_two_runs_never_write_the_same_checkpoints(store: Store) -> None:
    first = attempt(store, saved=True)
    at_work = attempt(store, state="RUNNING", resume=first)
    for run in (first, at_work):
        with pytest.raises(SpecError, match="still at it") as caught:
            resume.first_attempt(store, run)
        assert at_work in caught.value.hint
    store.set_run_state(at_work, "CANCELLED")
    assert resume.first_attempt(store, first) == first


def test_only_training_that_ended_too_early_and_left_a_checkpoint_can_go_on(store: Store) -> None:
    ready = attempt(store, saved=True, state="CANCELLED")
    finished, empty = attempt(store, saved=True, state="SUCCEEDED"), attempt(store)
    other = attempt(store, kind="eval", saved=True)
    assert [resume.can_resume(store, store.run(run)) for run in (ready, finished, empty, other)] == [True] + [False] * 3
    with pytest.raises(SpecError, match="no training"):
        resume.first_attempt(store, other)


def test_a_step_goes_on_from_the_same_step_with_the_same_inputs_only(store: Store) -> None:
    same = attempt(store, kind="step", saved=True, key="k1")
    attempt(store, kind="step", saved=True, key="k2")
    attempt(store, kind="step", key="k1")  # newer, but it left nothing
    assert resume.same_step(store, attempt(store, kind="step", state="RUNNING", key="k1")) == same
    assert resume.same_step(store, attempt(store, kind="step", state="RUNNING", key="k3")) == ""
    assert resume.same_step(store, attempt(store, state="RUNNING")) == ""


def test_a_failure_says_how_to_go_on_only_when_there_is_a_checkpoint(store: Store) -> None:
    for saved in (True, False):
        run = attempt(store, saved=saved)
        with pytest.raises(Failed) as caught, resume.tell_how_to_resume(store, run, run):
            raise Failed("a rank died", hint="its log")
        assert caught.value.hint.startswith("its log")
        assert (f"train --resume {run}" in caught.value.hint) == saved


def test_half_a_checkpoint_is_not_offered(store: Store) -> None:
    """What a save that was killed has left, which a resumed run would sweep away."""
    run = attempt(store)
    write(store, run, "__0_0.distcp")
    assert not resume.can_resume(store, store.run(run))
    with pytest.raises(Failed) as caught, resume.tell_how_to_resume(store, run, run):
        raise Failed("a rank died")
    assert not caught.value.hint


def test_a_store_that_does_not_answer_does_not_hide_why_training_failed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_reach(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    with Store.open(replace(settings, artifacts_url="memory://elsewhere")) as store:
        run = attempt(store)
        monkeypatch.setattr(fsspec.filesystem("memory"), "exists", out_of_reach)
        with pytest.raises(Failed, match="a rank died"), resume.tell_how_to_resume(store, run, run):
            raise Failed("a rank died")


def trained(store: Store, run: str, *, step: int, config: TrainConfig) -> None:
    """A complete checkpoint of `run` that says with which numbers it was trained."""
    folder = Path(resume.checkpoints_of(store, run).removeprefix("local://")) / f"step-{step:08}-1f3a5c7e"
    folder.mkdir(parents=True)
    notes = {"config": numerics(config), "data": {"position": step}}
    (folder / "manifest.json").write_text(json.dumps({"step": step, "notes": notes}))
    (folder / MARKER).write_text("x")


CONFIG = TrainConfig(steps=400, global_batch=8, seq_len=16)


def test_a_changed_configuration_is_refused_before_any_rank_starts(store: Store) -> None:
    run = attempt(store)
    trained(store, run, step=20, config=CONFIG)
    with pytest.raises(SpecError, match=rf"from run {run}: the configuration changed \(steps 400 -> 60\)") as caught:
        resume.check_unchanged(store, run, replace(CONFIG, steps=60, checkpoint_every=20))
    assert "leave --resume out" in caught.value.hint


def test_a_run_goes_on_with_the_same_numbers_and_may_write_at_other_times(store: Store) -> None:
    run = attempt(store)
    assert resume.check_unchanged(store, run, CONFIG) == {}
    trained(store, run, step=20, config=CONFIG)
    assert resume.check_unchanged(store, run, replace(CONFIG, checkpoint_every=7))["data"] == {"position": 20}


def test_a_checkpoint_that_cannot_be_read_is_left_to_the_ranks_which_know_older_ones(store: Store) -> None:
    run = attempt(store, saved=True)
    assert resume.check_unchanged(store, run, CONFIG) == {}


def test_a_continuation_that_fails_before_it_saves_points_to_the_run_it_went_on_from(store: Store) -> None:
    first, second = attempt(store, saved=True), attempt(store, state="RUNNING")
    with pytest.raises(Failed) as caught, resume.tell_how_to_resume(store, first, second):
        raise Failed("a rank died")
    assert f"train --resume {first}" in caught.value.hint

    def save_and_fail() -> None:
        trained(store, first, step=20, config=CONFIG)
        raise Failed("a rank died")

    with pytest.raises(Failed) as caught, resume.tell_how_to_resume(store, first, second):
        save_and_fail()
    assert f"train --resume {second}" in caught.value.hint
