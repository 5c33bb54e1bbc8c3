"""The books of jobs: who may write what about which attempt, and what is left when a driver is gone."""

import json
import time
from dataclasses import replace

import pytest

from mainspring.spec import Eviction, Job, JobResult, NodeNote, NotFound, Placement, SpecError
from mainspring.store import Store
from mainspring.store.ledger import certainly_gone

C = "cluster"


def job(name: str, **fields) -> Job:
    return Job(id=name, name=name, entry="m:f", **fields)


def enqueue(store: Store, name: str, driver: str = "me", **fields):
    return store.enqueue(job(name, **fields), address="local", cluster=C if driver else "", driver=driver)


def on(name: str, *nodes: str) -> Placement:
    return Placement(job_id=name, nodes=nodes)


def states(store: Store, name: str) -> list[str]:
    return [json.loads(event.data_json)["state"] for event in store.events(kind="job.state", subject=name)]


def test_a_job_goes_through_its_life_and_every_step_is_an_event(store: Store):
    enqueue(store, "j")
    assert store.assign(C, [on("j", "n0")], driver="me", beside=())
    record = store.job("j")
    assert (record.state, record.attempt, record.placement) == ("ADMITTED", 1, on("j", "n0"))
    assert store.advance(record, "RUNNING")
    done = JobResult(job_id="j", state="SUCCEEDED", reason="", exits=(), seconds=1.0)
    assert store.advance(record, "SUCCEEDED", result=done)
    assert store.job("j").result == done
    assert states(store, "j") == ["PENDING", "ADMITTED", "RUNNING", "SUCCEEDED"]


def test_a_job_ends_once_whoever_says_so(store: Store):
    enqueue(store, "j")
    store.assign(C, [on("j", "n0")], driver="me", beside=())
    record = store.job("j")
    assert store.advance(record, "SUCCEEDED")
    assert not store.advance(record, "FAILED", "late")
    assert not store.requeue(record, "late", counted=True)
    assert store.take_over(record, "other") is None
    assert store.job("j").state == "SUCCEEDED"


def test_what_an_earlier_attempt_says_is_not_heard(store: Store):
    enqueue(store, "j", starts=3)
    store.assign(C, [on("j", "n0")], driver="me", beside=())
    first = store.job("j")
    assert store.requeue(first, "node n0 is gone", counted=True)
    assert store.assign(C, [on("j", "n1")], driver="me", beside=())
    assert not store.advance(first, "SUCCEEDED")
    second = store.job("j")
    assert (second.attempt, second.losses, second.state) == (2, 1, "ADMITTED")


def test_a_driver_whose_job_was_taken_over_cannot_write_about_it(store: Store):
    store.enqueue(job("j"), address="local")
    assert store.assign(C, [on("j", "n0")], driver="first", beside=())
    record = store.job("j")
    taken = store.take_over(record, "second")
    assert taken is not None
    assert not store.advance(record, "SUCCEEDED")
    assert store.advance(taken, "RUNNING")


def test_places_are_given_only_if_nobody_else_has_taken_any_meanwhile(store: Store):
    enqueue(store, "a")
    enqueue(store, "b", driver="other")
    seen = store.jobs_of(C, address="local")
    assert store.assign(C, [on("b", "n0")], driver="other", beside=seen)
    assert not store.assign(C, [on("a", "n0")], driver="me", beside=seen)
    assert store.job("a").state == "PENDING"
    assert store.assign(C, [on("a", "n1")], driver="me", beside=store.jobs_of(C, address="local"))


def test_places_are_given_to_all_or_to_none(store: Store):
    enqueue(store, "a")
    enqueue(store, "b", driver="other")
    assert not store.assign(C, [on("a", "n0"), on("b", "n0")], driver="me", beside=())
    assert store.job("a").state == "PENDING"
    enqueue(store, "c")
    store.cancel_job("c", "not needed")
    assert not store.assign(C, [on("c", "n0")], driver="me", beside=())


def test_a_live_id_is_refused_and_an_ended_one_goes_on_counting_attempts(store: Store):
    store.join("me", C)
    enqueue(store, "j")
    with pytest.raises(SpecError, match="a job with the id 'j' is PENDING"):
        enqueue(store, "j")
    store.assign(C, [on("j", "n0")], driver="me", beside=())
    store.advance(store.job("j"), "FAILED", "x")
    assert enqueue(store, "j").attempt == 1
    assert store.assign(C, [on("j", "n0")], driver="me", beside=())
    assert store.job("j").attempt == 2


def test_a_job_left_by_a_driver_that_is_gone_does_not_block_its_id(store: Store):
    enqueue(store, "j", driver="never-joined")
    assert enqueue(store, "j").state == "PENDING"
    store.enqueue(job("lasting"), address="local")
    with pytest.raises(SpecError, match="PENDING"):
        enqueue(store, "lasting")


def test_why_jobs_wait_is_said_of_those_that_still_do(store: Store):
    numbers = {name: enqueue(store, name).number for name in "ab"}
    store.assign(C, [on("b", "n0")], driver="me", beside=())
    store.explain({numbers["a"]: "0 would fit now", numbers["b"]: "late"})
    assert [store.job(name).reason for name in "ab"] == ["0 would fit now", ""]


def test_what_a_driver_has_left_ends_and_what_others_see_to_does_not(store: Store):
    store.join("me", C)
    for name, driver in (("left", "never-joined"), ("mine", "me")):
        enqueue(store, name, driver=driver)
    store.enqueue(job("lasting"), address="local")
    store.end_abandoned_jobs()
    assert [store.job(name).state for name in ("left", "mine", "lasting")] == ["FAILED", "PENDING", "PENDING"]
    assert store.job("left").reason == "the process that started it is gone"


def test_secrets_are_not_written_down(store: Store):
    enqueue(store, "j", secret_json='{"password": "correct-horse"}')
    assert store.job("j").job.secret_json == "{}"
    with pytest.raises(SpecError, match="secrets and no driver"):
        store.enqueue(job("k", secret_json='{"password": "x"}'), address="local")


def test_lasting_jobs_are_their_own_workspaces_and_places_are_everybodys(store: Store):
    store.enqueue(job("mine"), address="auto")
    with Store.open(replace(store.settings, workspace="theirs")) as theirs:
        theirs.enqueue(job("theirs"), address="auto")
        theirs.enqueue(job("holding"), address="auto", cluster=C, driver="d")
        theirs.assign(C, [on("holding", "n0")], driver="d", beside=())
    assert [record.job.id for record in store.jobs_of(C, address="auto")] == ["mine", "holding"]
    with pytest.raises(NotFound, match="no job 'theirs'"):
        store.job("theirs")


def test_drivers_count_and_are_struck_off(store: Store):
    store.join("me", C)
    store.beat("me", C)
    (driver,) = store.drivers()
    assert (driver.beat, certainly_gone(driver)) == (1, False)
    gone = json.loads(driver.owner_json) | {"born": "1"}
    assert certainly_gone(replace(driver, owner_json=json.dumps(gone)))
    store.part("me")
    assert store.drivers() == ()
    store.beat("me", C)
    assert [each.id for each in store.drivers()] == ["me"]


def test_what_is_known_of_a_node_replaces_what_was(store: Store):
    note = NodeNote(cluster=C, node="n0", closed=True, reason="new memory")
    store.note_node(note)
    assert store.node_notes(C) == (note,)
    store.note_node(replace(note, closed=False, sick=(1, 3)))
    assert store.node_notes(C)[0].sick == (1, 3)
    assert store.node_notes("another") == ()


def test_a_clock_that_jumps_back_changes_no_order_and_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch):
    enqueue(store, "before")
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s - 86_400)
    enqueue(store, "after")
    store.assign(C, [on("before", "n0"), on("after", "n0")], driver="me", beside=())
    monkeypatch.setattr(time, "time", lambda: now_s + 86_400)
    store.advance(store.job("before"), "SUCCEEDED")
    assert [record.job.id for record in store.jobs_of(C, address="local")] == ["after"]
    assert [record.job.id for record in store.jobs()] == ["after", "before"]
    told = [(event.subject, json.loads(event.data_json)["state"]) for event in store.events(kind="job.state")]
    assert told == [
        ("before", "PENDING"),
        ("after", "PENDING"),
        ("before", "ADMITTED"),
        ("after", "ADMITTED"),
        ("before", "SUCCEEDED"),
    ]


def test_who_has_to_leave_is_told_in_the_commit_that_gives_his_places_away(store: Store):
    enqueue(store, "low", "other", starts=3)
    assert store.assign(C, [on("low", "n0")], driver="other", beside=())
    low = store.job("low")
    store.note_saved(low)
    enqueue(store, "high")
    assert store.job("low").saved_s >= low.started_s > 0
    stop = Eviction(record=low, reason="stops: makes room for high", lost_ms=7)
    assert store.assign(C, [on("high", "n0")], driver="me", beside=[low], evictions=[stop])
    assert store.job("low").evicted == "stops: makes room for high"
    told = json.loads(store.events(kind="job.evict", subject="low")[0].data_json)
    assert told == {"attempt": 1, "reason": "stops: makes room for high", "lost_ms": 7}
    assert store.requeue(low, "stops: makes room for high", counted=False)
    waits = store.job("low")
    assert (waits.state, waits.losses, waits.evicted) == ("PENDING", 0, "stops: makes room for high")
    assert store.assign(C, [on("low", "n1")], driver="other", beside=[store.job("high")])
    assert (store.job("low").evicted, store.job("low").saved_s) == ("", 0.0)


def test_places_of_one_who_has_left_meanwhile_or_leaves_for_somebody_else_are_not_given_away(store: Store):
    for name in ("low", "high", "higher"):
        enqueue(store, name, starts=3)
    assert store.assign(C, [on("low", "n0")], driver="me", beside=())
    low = store.job("low")
    stop = Eviction(record=low, reason="for high")
    assert store.assign(C, [on("high", "n0")], driver="me", beside=[low], evictions=[stop])
    high = store.job("high")
    assert not store.assign(C, [on("higher", "n0")], driver="me", beside=[low, high], evictions=[stop])
    assert store.job("low").evicted == "for high"
    assert store.advance(high, "SUCCEEDED")
    gone = Eviction(record=high, reason="for higher")
    assert not store.assign(C, [on("higher", "n0")], driver="me", beside=[low], evictions=[gone])
    assert store.job("higher").state == "PENDING"
