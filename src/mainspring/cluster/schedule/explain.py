"""Why a gang is where it is, and what would change that: not guessed, but tried on copies of the state.

Every answer is a decision with one thing altered: another gang ended, fewer ranks asked for, a wish dropped. What did
not let the gang start is not mentioned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mainspring.cluster.schedule.decide import decide
from mainspring.cluster.schedule.gather import victim_of
from mainspring.cluster.schedule.state import Entry, State, priority_now
from mainspring.spec import Decision, Ended, Gang, NotFound, Submitted, Why

MOST_ENDS = 64
MOST_TOGETHER = 3


def explain(state: State, name: str, decisions: Sequence[Decision] = ()) -> Why:
    """Why the gang `name` runs, waits, or (by `decisions`) was refused, and what would let it start."""
    entry = state.entries.get(name)
    if entry is None:
        for decision in decisions:
            if decision.gang == name and decision.kind == "refuse":
                unblocks = (decision.hint,) if decision.hint else ()
                return Why(gang=name, state="refused", reason=decision.reason, unblocks=unblocks)
        near = sorted(state.entries)[:8]
        raise NotFound(f"no gang {name!r} waits or runs", hint=f"there are {', '.join(near) or 'none'}")
    if entry.place is not None:
        nodes = tuple(dict.fromkeys(state.fleet.names[n] for n in entry.place.nodes))
        reason = f"{entry.gang.ranks} ranks are placed"
        return Why(gang=name, state="running", reason=reason, nodes=nodes, plan=entry.gang.plan)
    ahead = sum(1 for other in state.entries.values() if other.place is None and _before(state, other, entry))
    reason = entry.reason or "others of its queue come first"
    return Why(gang=name, state="waiting", reason=reason, ahead=ahead, unblocks=tuple(_unblocks(state, entry)))


def try_gang(state: State, gang: Gang) -> Why:
    """What would happen to a gang that came now: where it would run, in whose place, or why not and what would help."""
    outcome = decide(state, [Submitted(gang=gang)], now_ms=state.now_ms)
    why = explain(outcome.state, gang.id, outcome.decisions)
    if why.state != "running":
        return why
    gone = [each.gang for each in outcome.decisions if each.kind == "evict"]
    again = {each.gang: each.nodes for each in outcome.decisions if each.kind == "start"}
    victims = tuple(victim_of(state, name, again.get(name, ())) for name in dict.fromkeys(gone))
    return replace(why, reason="it would start at once", victims=victims)


def _before(state: State, other: Entry, entry: Entry) -> bool:
    """Whether another waiting gang has its turn first, in the same queue."""
    mine = (-priority_now(state, entry), entry.number)
    return other.leaf == entry.leaf and (-priority_now(state, other), other.number) < mine


def _unblocks(state: State, entry: Entry) -> Iterator[str]:
    """What was tried and lets the gang start."""
    gang = entry.gang
    if _starts_after(state, entry, []):
        yield "the scheduler's next look: there is room"
        return
    ends = tuple(_ends(state, entry))
    yield from ends or _ends_of_its_turn(state, entry)
    fewer = _most_ranks(state, gang)
    if fewer:
        yield f"asking for {fewer} rank{'s' * (fewer > 1)} instead of {gang.ranks}"
    if gang.binding == "required" and gang.level and _starts(state, replace(gang, binding="preferred")):
        yield f"preferring one {gang.level} instead of requiring it"
    if gang.request.models and _starts(state, replace(gang, request=replace(gang.request, models=()))):
        yield "allowing any model of device"
    if gang.nodes and _starts(state, replace(gang, nodes=())):
        yield "allowing any node"
    if not gang.preemptible and _starts(state, replace(gang, preemptible=True)):
        yield "being preemptible"
    top = max((each.gang.priority for each in state.running() if each.leaf == entry.leaf), default=gang.priority)
    if top >= gang.priority and _starts(state, replace(gang, priority=top + 1)):
        yield f"a priority of {top + 1} instead of {gang.priority}"


def _ends(state: State, entry: Entry) -> Iterator[str]:
    """Single gangs whose end would do, or else the first few to end together."""
    running = sorted(state.running(), key=lambda each: (each.started_ms + each.gang.runtime_ms, each.number))
    names = [each.gang.id for each in running[:MOST_ENDS]]
    singles = [name for name in names if _starts_after(state, entry, [name])]
    if singles:
        more = f" (or {len(singles) - MOST_TOGETHER} others)" if len(singles) > MOST_TOGETHER else ""
        yield f"the end of {' or '.join(singles[:MOST_TOGETHER])}{more}"
        return
    for count in range(2, len(names) + 1):
        if _starts_after(state, entry, names[:count]):
            few = names[:count]
            for name in list(few):
                without = [each for each in few if each != name]
                few = without if _starts_after(state, entry, without) else few
            shown = f"{', '.join(few[:-1])} and {few[-1]}" if len(few) <= 8 else f"{len(few)} gangs, {few[0]} first"
            yield f"the end of {shown} together"
            return


def _ends_of_its_turn(state: State, entry: Entry) -> Iterator[str]:
    """What would do if those that have their turn before it were gone."""
    before = [each.gang.id for each in state.entries.values() if each.place is None and _before(state, each, entry)]
    if not before:
        return
    gone = f"{', '.join(before[:MOST_TOGETHER])}{', ...' if len(before) > MOST_TOGETHER else ''} gone"
    alone = decide(state, [Ended(gang=name) for name in before], now_ms=state.now_ms).state
    mine = alone.entries[entry.gang.id]
    if mine.place is not None:
        yield f"{gone} from before it"
        return
    yield from (f"{end}, and {gone} from before it" for end in _ends(alone, mine))


def _starts_after(state: State, entry: Entry, gone: Sequence[str]) -> bool:
    outcome = decide(state, [Ended(gang=name) for name in gone], now_ms=state.now_ms)
    return outcome.state.entries[entry.gang.id].place is not None


def _starts(state: State, gang: Gang) -> bool:
    """Whether the gang would start if it had asked differently."""
    happenings = [Ended(gang=gang.id), Submitted(gang=gang)]
    outcome = decide(state, happenings, now_ms=state.now_ms)
    found = outcome.state.entries.get(gang.id)
    return found is not None and found.place is not None


def _most_ranks(state: State, gang: Gang) -> int:
    """The most ranks with which it would start now, 0 when not even one would do or slices forbid it."""
    if gang.segment or gang.menu or gang.ranks == 1:
        return 0
    low, high = 0, gang.ranks - 1
    while low < high:
        middle = (low + high + 1) // 2
        if _starts(state, replace(gang, ranks=middle)):
            low = middle
        else:
            high = middle - 1
    return low
