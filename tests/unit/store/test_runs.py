"""Runs move only along their state machine, and the dead are found."""

import itertools
import json
import subprocess
import sys
from typing import get_args

import pytest

from mainspring.spec import TERMINAL, JobState, NotFound, Settings, SpecError
from mainspring.store import Store
from mainspring.store.process import is_gone, this_process
from mainspring.store.runs import NEXT

STATES: tuple[JobState, ...] = get_args(JobState)


def _reach(store: Store, goal: JobState) -> str:
    run = store.start_run("train", "x", config={}).id
    path = {
        "ADMITTED": ["ADMITTED"],
        "PLACED": ["ADMITTED", "PLACED"],
        "RUNNING": ["RUNNING"],
        "PREEMPTED": ["RUNNING", "PREEMPTED"],
        "SUCCEEDED": ["RUNNING", "SUCCEEDED"],
        "FAILED": ["FAILED"],
        "CANCELLED": ["CANCELLED"],
    }
    for state in path.get(goal, []):
        store.set_run_state(run, state)
    return run


def test_every_transition_is_either_legal_or_refused_and_leaves_the_run_alone(store: Store) -> None:
    for start, goal in itertools.product(STATES, STATES):
        run = _reach(store, start)
        if goal in NEXT[start] or goal == start:
            assert store.set_run_state(run, goal).state == goal
        else:
            with pytest.raises(SpecError, match=f"is {start} and cannot become {goal}"):
                store.set_run_state(run, goal)
            assert store.run(run).state == start


def test_no_state_leads_out_of_the_end_and_every_state_leads_to_one() -> None:
    assert {state for state in STATES if not NEXT[state]} == TERMINAL
    assert all(NEXT[state] & TERMINAL for state in STATES if state not in TERMINAL)


def test_a_run_remembers_what_was_asked_and_when(store: Store) -> None:
    run = store.start_run("train", "handbook", config={"lr": 0.1, "deep": {"a": [1]}}, code="abc", seed=2**40)
    assert (run.state, run.started_s, run.ended_s) == ("PENDING", None, None)
    assert json.loads(run.config_json) == {"lr": 0.1, "deep": {"a": [1]}}
    assert run.code.startswith("mainspring ")
    assert run.code.endswith(", abc")
    assert "torch" in json.loads(run.environment_json)["libraries"]
    started = store.set_run_state(run.id, "RUNNING").started_s
    ended = store.set_run_state(run.id, "FAILED", "out of memory")
    assert ended.started_s == started
    assert run.created_s <= (started or 0) <= (ended.ended_s or 0)
    assert (ended.seed, ended.reason) == (2**40, "out of memory")
    states = [json.loads(event.data_json)["state"] for event in store.events(kind="run.state", subject=run.id)]
    assert states == ["PENDING", "RUNNING", "FAILED"]


def test_repeating_a_state_changes_nothing(store: Store) -> None:
    run = _reach(store, "SUCCEEDED")
    before = store.run(run), store.events()
    store.set_run_state(run, "SUCCEEDED", "again")
    assert (store.run(run), store.events()) == before


def test_runs_are_listed_newest_first_and_found_by_an_end_of_their_id(store: Store) -> None:
    ids = [store.start_run(kind, "x", config={}).id for kind in ("train", "eval", "train")]
    store.set_run_state(ids[2], "RUNNING")
    assert [run.id for run in store.runs()] == ids[::-1]
    assert [run.id for run in store.runs("train")] == [ids[2], ids[0]]
    assert [run.id for run in store.runs(state="RUNNING")] == [ids[2]]
    assert len(store.runs(limit=1)) == 1
    assert store.run(ids[1][-10:]).id == ids[1]
    with pytest.raises(SpecError, match="several"):
        store.run("train")
    for unknown in ("", "%", "nothing"):
        with pytest.raises(NotFound):
            store.run(unknown)
    with pytest.raises(SpecError, match="not a job state"):
        store.set_run_state(ids[0], "DONE")  # type: ignore[arg-type]


def test_a_run_has_its_own_folder_and_cannot_name_another(store: Store) -> None:
    run = store.start_run("train", "x", config={}).id
    assert store.run_dir(run).is_dir()
    with pytest.raises(SpecError):
        store.run_dir("../../etc")


STARTER = """
import sys
from mainspring.spec import Settings
from mainspring.store import Store
store = Store.open(Settings(home=sys.argv[1], database_url=sys.argv[2]))
run = store.start_run("train", "x", config={}).id
store.set_run_state(run, "RUNNING")
print(run, flush=True)
sys.stdin.read()
"""


def test_a_run_whose_process_was_killed_is_found_and_marked_and_living_ones_are_left(settings: Settings) -> None:
    with Store.open(settings) as store:
        mine = store.start_run("train", "mine", config={}).id
        done = _reach(store, "SUCCEEDED")
        arguments = [sys.executable, "-c", STARTER, settings.home, settings.database_url]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            theirs = child.stdout.readline().strip()
            assert store.reap_dead_runs() == ()
            child.kill()
        assert [line for line in store.doctor() if theirs in line]
        assert [run.id for run in store.reap_dead_runs()] == [theirs]
        assert "gone" in store.run(theirs).reason
        assert [store.run(run).state for run in (mine, done, theirs)] == ["PENDING", "SUCCEEDED", "FAILED"]


def test_a_run_is_moved_by_the_beginning_of_its_id_too(store: Store) -> None:
    run = store.start_run("train", "x", config={})
    assert store.set_run_state(run.id[:-3], "RUNNING").id == run.id
    assert store.run(run.id).state == "RUNNING"
    assert [event.subject for event in store.events(kind="run.state")] == [run.id, run.id]


def test_a_process_is_gone_only_when_that_is_certain() -> None:
    me = this_process()

    def like_me(**changes: object) -> bool:
        return is_gone(type(me)(**{**{n: getattr(me, n) for n in me.__slots__}, **changes}))  # type: ignore[attr-defined]

    assert not is_gone(me)
    assert like_me(born="1")
    assert like_me(boot="an earlier one")
    assert like_me(pid=2**22 + 1)
    assert not like_me(host="elsewhere", pid=2**22 + 1)
    assert not like_me(namespace="pid:[1]", born="1")
