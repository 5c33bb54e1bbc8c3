"""Crashes at any point: no group without a job, no job twice, none lost."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.cluster.pulse import SILENT_S, Pulse
from mainspring.cluster.reconcile import Group, group_name, group_of, reconcile
from mainspring.spec import ACTIVE, Driver, Job, JobRecord
from mainspring.store.parse import to_json
from mainspring.store.process import this_process

ELSEWHERE = to_json(replace(this_process(), host="another"))


def record(number: int, **fields) -> JobRecord:
    job = Job(id=f"j{number}", name="j", entry="m:f")
    base = {"workspace": "w", "address": "auto", "cluster": "c", "driver": "d", "lasting": True, "state": "RUNNING"}
    return JobRecord(number=number, job=job, **{**base, "attempt": 1, **fields})


def steps(records, groups=(), *, alive=frozenset(), serves="auto"):
    return reconcile(records, groups, alive=alive, cluster="c", serves=serves)


def test_jobs_of_living_drivers_are_left_alone_with_their_groups():
    group = Group(id="g", number=1, attempt=1)
    assert steps([record(1)], [group], alive=frozenset({"d"})) == ()


def test_a_group_of_another_attempt_or_of_no_job_is_removed():
    groups = [Group(id="old", number=1, attempt=0), Group(id="none", number=9, attempt=1)]
    found = steps([record(1)], groups, alive=frozenset({"d"}))
    assert [(step.kind, step.group) for step in found] == [("remove", "old"), ("remove", "none")]


def test_a_job_that_lasts_is_taken_over_where_its_cluster_stands_and_waits_again_where_not():
    here, gone = record(1), record(2, cluster="before the restart")
    assert [(step.kind, step.record) for step in steps([here, gone])] == [("take", here), ("again", gone)]
    assert steps([here, gone], serves="") == ()
    assert steps([here, gone], serves="ray://other:1") == ()


def test_a_job_that_has_to_leave_and_has_nobody_to_ask_it_waits_again_and_its_group_goes():
    leaves, group = record(1, evicted="makes room for j2"), Group(id="g", number=1, attempt=1)
    assert [(step.kind, step.group) for step in steps([leaves], [group], serves="")] == [("again", ""), ("remove", "g")]
    assert [step.kind for step in steps([leaves], [group])] == ["take"]


def test_a_job_that_does_not_last_ends_with_its_driver_and_so_does_its_group():
    found = steps([record(1, lasting=False)], [Group(id="g", number=1, attempt=1)], serves="")
    assert [(step.kind, step.group) for step in found] == [("fail", ""), ("remove", "g")]


def test_names_of_groups_are_read_back_and_those_of_other_stores_are_not():
    name = group_name("s1", record(3, attempt=2))
    assert group_of("s1", name, "id") == Group(id="id", number=3, attempt=2)
    for other in ("", "mainspring/s2/3/2", "mainspring/s1/3/x", "mainspring/s1/", "my/mainspring/s1/3/2"):
        assert group_of("s1", other, "id") is None


def test_a_driver_elsewhere_lives_while_it_counts_and_no_clock_but_ours_is_asked():
    pulse, driver = Pulse(), Driver(id="d", cluster="c", owner_json=ELSEWHERE, beat=5)
    assert pulse.alive([driver], now_s=0.0) == {"d"}
    assert pulse.alive([driver], now_s=SILENT_S - 1) == {"d"}
    assert pulse.alive([replace(driver, beat=6)], now_s=SILENT_S - 0.5) == {"d"}
    assert pulse.alive([replace(driver, beat=6)], now_s=2 * SILENT_S - 1) == {"d"}
    assert pulse.alive([replace(driver, beat=6)], now_s=2 * SILENT_S) == frozenset()


@dataclass
class World:
    """The books, Ray's groups and what ran, as drivers that crash at any step leave them."""

    books: dict[int, JobRecord]
    groups: dict[str, Group] = field(default_factory=dict)
    ran: list[tuple[int, int]] = field(default_factory=list)  # ranks that were started: number and attempt
    made: int = 0

    def step(self, driver: str, number: int) -> None:
        """The next thing a driver does about a job: write, then act; each of it can be the last."""
        found = self.books[number]
        if found.state == "PENDING" and found.driver in ("", driver):
            change = {"state": "ADMITTED", "driver": driver, "cluster": "c", "attempt": found.attempt + 1}
            self.books[number] = replace(found, **change)
        elif found.driver != driver or found.state not in ACTIVE:
            return
        elif not (mine := self._group(found)):
            self.made += 1
            name = group_name("s", found)
            self.groups[str(self.made)] = group_of("s", name, str(self.made))
        elif found.state == "ADMITTED":
            self.books[number] = replace(found, state="RUNNING")
        elif (number, found.attempt) not in self.ran:
            self.ran.append((number, found.attempt))
        elif found.state == "RUNNING" and mine:
            self.books[number] = replace(found, state="SUCCEEDED")

    def _group(self, found: JobRecord) -> Group | None:
        return next((g for g in self.groups.values() if (g.number, g.attempt) == (found.number, found.attempt)), None)

    def successor(self, driver: str) -> None:
        """A new driver puts things right; everybody else is gone."""
        for step in steps(list(self.books.values()), list(self.groups.values()), alive=frozenset({driver})):
            if step.kind == "remove":
                del self.groups[step.group]
            elif step.record and step.kind == "take":
                self.books[step.record.number] = replace(step.record, driver=driver)
            elif step.record:
                self.books[step.record.number] = replace(step.record, state="PENDING", driver="")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=60))
def test_however_often_drivers_crash_every_job_runs_once_and_no_group_is_left(history):
    waiting = {n: record(n, state="PENDING", driver="", cluster="", attempt=0) for n in (1, 2, 3)}
    world, life = World(waiting), 0
    for number, crash in history:
        if crash:
            life += 1
            world.successor(f"d{life}")
        world.step(f"d{life}", number)
    life += 1
    world.successor(f"d{life}")
    for number in (1, 2, 3):
        for _ in range(6):
            world.step(f"d{life}", number)
    world.successor(f"d{life}")
    assert {found.state for found in world.books.values()} == {"SUCCEEDED"}
    assert sorted(world.ran) == [(1, 1), (2, 1), (3, 1)]
    assert world.groups == {}
