"""Plan and place together: gangs that carry a menu get the offers that are worth most to the cluster as a whole.

A waiting gang may take any of its offers; a running one may change at the moment it has saved, when nothing is lost but
a restart. What they may take is what is free, within the part of the cluster that their queues are entitled to, less
what waits there without a choice. Offers are chosen together (`bargain`), then placed; one that finds no place gives
way to the gang's next best. Who gets nothing waits in line like everybody else, in the smallest of its offers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mainspring.cluster.schedule.bargain import Choice, settle
from mainspring.cluster.schedule.gang import Place, find_place, occupy, usable_nodes
from mainspring.cluster.schedule.limits import over_limit
from mainspring.cluster.schedule.quota import Vector, divide
from mainspring.cluster.schedule.starts import start_at
from mainspring.cluster.schedule.state import Entry, State, add, book, dequeue, enqueue, priority_now, release, wished
from mainspring.spec import WHOLE, Aim, Decision, Gang, Offer, Request

MOST_WAITING = 96  # of the gangs in line, by age, that are decided about together
CHANGE = 1.1  # how much better another offer must be than the one a gang runs with
RUNS = 0.5  # what it is worth that a gang runs at all, in devices


@dataclass(frozen=True, slots=True)
class Bidder:
    """A gang that may take another offer now. `was` is where it ran until this moment."""

    entry: Entry
    was: Entry | None = None


def reshape(state: State, saved: Collection[str], total: Vector) -> list[Decision]:
    """Give offers to those who wait and to those who have just saved. The books are changed."""
    bidders = _bidders(state, saved)
    if not bidders:
        return []
    for bidder in bidders:
        if bidder.was is not None:
            release(state, bidder.was)
    picks = _choose(state, bidders, total)
    decisions: list[Decision] = []
    for bidder, pick in sorted(zip(bidders, picks, strict=True), key=_in_order):
        _carry_out(state, bidder, pick, total, decisions)
    return decisions


def smallest(menu: Sequence[Offer]) -> Offer:
    """The offer that takes least: of devices, then of cores."""
    return min(menu, key=lambda each: (each.ranks * each.request.device_milli, each.ranks * each.request.cpu_milli))


def size(ranks: int, request: Request) -> int:
    """How much ranks take, in thousandths of a device; of a core where they take no devices."""
    return ranks * (request.device_milli or request.cpu_milli)


def in_shape(state: State, entry: Entry, offer: Offer) -> Entry:
    """The record as it would be with this offer."""
    gang = replace(entry.gang, request=offer.request, ranks=offer.ranks)
    return replace(entry, gang=gang, asked=wished(state.tree, gang, state.fleet.models))


def worth(gang: Gang, offer: Offer, aim: Aim) -> float:
    """What an offer is worth: devices, or cores, at the best speed for each, or what it saves against the dearest."""
    best = max(each.speed / max(1, size(each.ranks, each.request)) for each in gang.menu) * WHOLE
    if aim == "goodput":
        return offer.speed / best
    spent = {each: _spent(each, aim) / each.speed for each in gang.menu}
    dearest = max(spent.values()) or 1.0
    return 1.0 + RUNS - spent[offer] / dearest  # always worth running, and most so where it takes least


def _spent(offer: Offer, aim: Aim) -> int:
    return offer.milli_usd_per_hour if aim == "cost" else offer.watts


def _bidders(state: State, saved: Collection[str]) -> list[Bidder]:
    entries = [state.entries[name] for name in sorted(state.elastic)]
    waiting = sorted(
        (each for each in entries if each.place is None),
        key=lambda each: (-priority_now(state, each), each.number),
    )
    settled_ms = state.now_ms - state.rules.shield_ms
    ready = [each for each in entries if each.place and each.gang.id in saved and each.started_ms <= settled_ms]
    return [Bidder(each) for each in waiting[:MOST_WAITING]] + [Bidder(each, was=each) for each in ready]


def _choose(state: State, bidders: Sequence[Bidder], total: Vector) -> list[list[Offer]]:
    """For each bidder the offers to try, the chosen one first; none when nothing was to be had."""
    room = _room(state, bidders, total)
    keys = list(room)
    menus = [[_choice(state, bidder, offer, keys) for offer in bidder.entry.gang.menu] for bidder in bidders]
    picks = settle(menus, [room[key] for key in keys])
    found: list[list[Offer]] = []
    for bidder, menu, pick in zip(bidders, menus, picks, strict=True):
        order = sorted(range(len(menu)), key=lambda at: -menu[at].value)
        tried = [pick, *(at for at in order if at != pick and menu[at].value <= menu[pick].value)] if pick >= 0 else []
        found.append([bidder.entry.gang.menu[at] for at in tried])
    return found


def _room(state: State, bidders: Sequence[Bidder], total: Vector) -> Mapping[tuple[str, int], float]:
    """What the bidders may take together: of each model, and of each resource in each of their queues."""
    tree, fleet = state.tree, state.fleet
    opened = np.ones(len(fleet.names), np.bool_)
    opened[list(state.closed)] = False
    room: dict[tuple[str, int], float] = {}
    for number, model in enumerate(fleet.models):
        room[(model, -1)] = float(fleet.free.devices[(fleet.total.model == number) & opened].sum()) / WHOLE
    room[("cpu", -1)] = float(np.maximum(fleet.free.cpu[opened], 0).sum()) / WHOLE
    asked = [list(row) for row in state.asked]
    for bidder in bidders:
        gang = bidder.entry.gang
        add(asked[bidder.entry.leaf], bidder.entry.asked, sign=-1)
        most = [wished(tree, replace(gang, request=o.request, ranks=o.ranks), fleet.models) for o in gang.menu]
        add(asked[bidder.entry.leaf], [max(column) for column in zip(*most, strict=True)])
    shares = divide(tree, total, asked)
    for leaf in {bidder.entry.leaf for bidder in bidders}:
        first = _waiting_without_choice(state, leaf)
        for r in range(len(tree.resources)):
            room[("", leaf * len(tree.resources) + r)] = (
                max(0, shares[leaf][r] - state.used[leaf][r] - first[r]) / WHOLE
            )
    return room


def _waiting_without_choice(state: State, leaf: int) -> list[int]:
    """What those of a queue ask for that wait and have no menu."""
    asked = [0] * len(state.tree.resources)
    for found in state.waiting.get(leaf, {}).values():
        for name in found:
            if name not in state.elastic:
                add(asked, state.entries[name].asked)
    return asked


def _choice(state: State, bidder: Bidder, offer: Offer, keys: Sequence[tuple[str, int]]) -> Choice:
    """An offer with what it takes of every limit."""
    gang, aim = bidder.entry.gang, state.rules.aim
    value = worth(gang, offer, aim) + (RUNS if aim == "goodput" else 0.0)
    if bidder.was is not None and _is_in(offer, bidder.was.gang):
        value *= CHANGE
    model = model_of(state, offer)
    taken = state.tree.vector(offer.request, ranks=offer.ranks, model=model)
    uses: dict[int, float] = {}
    for at, (name, number) in enumerate(keys):
        if number < 0:
            amount = offer.request.device_milli if name == model else offer.request.cpu_milli if name == "cpu" else 0
            amount *= offer.ranks
        else:
            leaf, r = divmod(number, len(state.tree.resources))
            amount = taken[r] if leaf == bidder.entry.leaf else 0
        if amount:
            uses[at] = amount / WHOLE
    return Choice(value=value, uses=uses)


def model_of(state: State, offer: Offer) -> str:
    """The model an offer runs on: the first that it may that the cluster has. Offers are for one model each."""
    if not offer.request.devices:
        return ""
    able = [model for model in state.fleet.models if not offer.request.models or model in offer.request.models]
    return able[0] if able else ""


def _in_order(pair: tuple[Bidder, list[Offer]]) -> tuple[int, int, int]:
    """Who stays as he is comes first, then who runs, the smallest first, as places are given back before others are
    sought; then who waits, the largest first."""
    bidder, offers = pair
    taken = size(offers[0].ranks, offers[0].request) if offers else 0
    if bidder.was is None:
        return (2, -taken, bidder.entry.number)
    return (0 if not offers or _same(bidder, offers) else 1, taken, bidder.entry.number)


def _same(bidder: Bidder, offers: Sequence[Offer]) -> bool:
    return bidder.was is not None and bool(offers) and _is_in(offers[0], bidder.was.gang)


def _is_in(offer: Offer, gang: Gang) -> bool:
    """Whether the gang has the shape of this offer."""
    return (offer.request, offer.ranks) == (gang.request, gang.ranks)


def _carry_out(state: State, bidder: Bidder, offers: Sequence[Offer], total: Vector, decisions: list[Decision]) -> None:
    """Start the gang with the first of its offers that finds a place; who ran keeps his place when none does."""
    was = bidder.was
    if was is not None and (_same(bidder, offers) or not offers):
        _stay(state, was, total, decisions)
        return
    for offer in offers:
        if was is not None and _is_in(offer, was.gang):
            break
        shaped = in_shape(state, bidder.entry, offer)
        place = _place(state, shaped, model_of(state, offer), total)
        if place is not None:
            _take(state, bidder, shaped, place, decisions)
            return
    if was is not None:
        _stay(state, was, total, decisions)
    elif (least := in_shape(state, bidder.entry, smallest(bidder.entry.gang.menu))).gang != bidder.entry.gang:
        _ask(state, bidder.entry, least)
        enqueue(state, least)


def _place(state: State, entry: Entry, model: str, total: Vector) -> Place | None:
    vector = state.tree.vector(entry.gang.request, ranks=entry.gang.ranks, model=model)
    if over_limit(state, entry, vector, total):
        return None
    return find_place(state.fleet, state.topology, entry.gang, model, usable_nodes(state.fleet, entry.gang, model))


def _take(state: State, bidder: Bidder, shaped: Entry, place: Place, decisions: list[Decision]) -> None:
    was = bidder.was
    reason = "the offer that serves the cluster best"
    if was is None:
        _ask(state, bidder.entry, shaped)
    else:
        add(state.asked[was.leaf], was.asked, sign=-1)
        add(state.asked[was.leaf], shaped.asked)
        grows = size(shaped.gang.ranks, shaped.gang.request) > size(was.gang.ranks, was.gang.request)
        reason = f"{'grows' if grows else 'gives way'} at its checkpoint: {reason}"
        lost_ms = state.rules.restart_ms
        decisions.append(Decision(kind="evict", gang=was.gang.id, reason=reason, lost_ms=lost_ms))
        shaped = replace(shaped, place=None, held=(), started_ms=-1)
    start_at(state, shaped, place, reason, decisions)


def _ask(state: State, entry: Entry, shaped: Entry) -> None:
    """Take a waiting gang out of the line, and count what it asks for in its new shape."""
    dequeue(state, entry)
    add(state.asked[entry.leaf], entry.asked, sign=-1)
    add(state.asked[entry.leaf], shaped.asked)


def _stay(state: State, was: Entry, total: Vector, decisions: list[Decision]) -> None:
    """Put a running gang back where it was; should another have its place by now, it waits again."""
    assert was.place is not None
    occupy(state.fleet, was.gang, was.place)
    free, here = state.fleet.free, np.unique(was.place.nodes)
    open_here = here[~np.isin(here, list(state.closed))]
    short = (free.devices[here] < 0).any() or (free.memory[here] < 0).any() or (free.cpu[open_here] < 0).any()
    short = short or over_limit(state, was, was.held, total)
    if short:
        occupy(state.fleet, was.gang, was.place, sign=1)
        reason = "gave its place to others at its checkpoint, and found no other"
        decisions.append(Decision(kind="evict", gang=was.gang.id, reason=reason, lost_ms=state.rules.restart_ms))
        enqueue(state, replace(was, place=None, held=(), started_ms=-1, reason=reason))
        return
    book(state, was, sign=1)
    state.entries[was.gang.id] = was
