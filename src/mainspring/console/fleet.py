"""A cluster drawn: the quota tree as bars, who waits, and every node with who is on which of its devices."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from urllib.parse import quote

from mainspring.console.markup import Markup, join, tag
from mainspring.console.parts import empty, figures, panel, table
from mainspring.console.words import count, several, size
from mainspring.spec import ANY_DEVICE, GatherPlan, NodeUse, QueueShare, Victim, Waiting, Why

MOST_NODES = 240
"""How many nodes are drawn; of a larger cluster the busiest part of the list would hide the rest."""
TONES = 6
"""Colours of jobs; they repeat, and every device also says who is on it."""
MIB = 1 << 20
STATES = {"running": "good", "waiting": "run", "refused": "bad"}


def totals(nodes: Sequence[NodeUse], waiting: Sequence[Waiting]) -> Markup:
    """The cluster in a few numbers."""
    devices = sum(len(node.held) - len(node.sick) for node in nodes)
    held = sum(sum(node.held) for node in nodes) / 1000
    cores, busy = (sum(each) / 1000 for each in zip(*((n.cpu_milli, n.cpu_held_milli) for n in nodes), strict=True))
    jobs = {name for node in nodes for name in node.gangs}
    shut = sum(not node.open for node in nodes)
    numbers = [
        ("Nodes", count(len(nodes)) + (f", {shut} closed" if shut else "")),
        ("Devices in use", f"{held:g} of {devices}" if devices else "none here"),
        ("Cores in use", f"{busy:g} of {cores:g}"),
        ("Jobs that run", count(len(jobs))),
        ("Jobs that wait", count(len(waiting))),
    ]
    return panel("Now", figures(numbers))


def tree(shares: Sequence[QueueShare]) -> Markup:
    """The quota tree: a bar per queue of what is scarcest here, and the other resources under it."""
    devices = any(share.resource == ANY_DEVICE for share in shares)
    main = ANY_DEVICE if devices else "cpu"
    queues = [list(parts) for _, parts in groupby(shares, key=lambda share: share.queue)]
    most = max(
        (max(part.used + part.waiting, part.share, part.min) for part in shares if part.resource == main), default=0
    )
    rows = [_queue(parts, main=main, most=max(most, 1e-9)) for parts in queues]
    key = tag(
        "p",
        [tag("span", tag("i", class_=name), word, class_="key") for name, word in _KEY],
        class_="note keys",
    )
    return panel("Queues", tag("div", rows, class_="quota"), key, aside="devices" if devices else "cores")


_KEY = (("used", "in use"), ("asked", "waiting for"), ("min", "guaranteed"), ("share", "entitled to now"))


def _queue(parts: Sequence[QueueShare], *, main: str, most: float) -> Markup:
    first = parts[0]
    part = next((each for each in parts if each.resource == main), None)
    name = tag(
        "div", tag("b", first.queue), _limits(part), class_="quota-name", style=f"padding-left:{18 * first.depth}px"
    )
    drawn = _bar(part, most) if part else None
    told = tag("div", f"{part.used:g} of {part.share:.4g}" if part else "", class_="number")
    others = [
        (each.resource, f"{each.used:g}", f"{each.waiting:g}", f"{each.min:g}", f"{each.share:.4g}", _max(each))
        for each in parts
        if each.resource != main
    ]
    rest = tag(
        "details",
        tag("summary", several(len(others), "other resource")),
        table(("resource", "used", "waiting", "min", "share", "max"), others, numbers=(1, 2, 3, 4, 5)),
        class_="fold",
    )
    return tag("div", name, drawn, told, rest if others and first.jobs else None, class_="quota-row")


def _limits(part: QueueShare | None) -> Markup:
    if part is None:
        return Markup("")
    said = [f"weight {part.weight}"]
    said += [f"min {part.min:g}"] if part.min else []
    said += [f"max {part.max:g}"] if part.max is not None else []
    return tag("span", ", ".join(said), class_="note")


def _bar(part: QueueShare, most: float) -> Markup:
    def at(value: float) -> str:
        return f"{min(1.0, value / most):.2%}"

    label = (
        f"{part.queue} holds {part.used:g} {part.resource}, waits for {part.waiting:g}, is entitled to {part.share:g}"
    )
    return tag(
        "div",
        tag("span", class_="used", style=f"width:{at(part.used)}"),
        tag("span", class_="asked", style=f"left:{at(part.used)};width:{at(min(part.waiting, most - part.used))}"),
        tag("span", class_="min", style=f"width:{at(part.min)}") if part.min else None,
        tag("span", class_="share", style=f"left:{at(part.share)}"),
        class_="quota-bar",
        role="img",
        aria_label=label,
        title=label,
    )


def _max(part: QueueShare) -> str:
    return "-" if part.max is None else f"{part.max:g}"


def line(waiting: Sequence[Waiting]) -> Markup:
    """Who waits, in the order of turns; a job's name leads to what would unblock it."""
    if not waiting:
        return panel("Waiting", empty("Nobody waits.", "mainspring queue"))
    rows = [
        (
            tag("a", each.gang, href=f"/cluster?job={quote(each.gang)}", class_="ref"),
            each.queue,
            str(each.position),
            each.asks,
            tag("span", each.reason, class_="soft"),
        )
        for each in waiting
    ]
    told = several(len(waiting), "job")
    return panel("Waiting", table(("job", "queue", "turn", "asks for", "because"), rows, numbers=(2,)), aside=told)


def answer(why: Why) -> Markup:
    """Where a job is in life, why, and what would change it."""
    badge = tag("span", _state(why), class_=f"badge {STATES[why.state]}")
    where = f"{several(len(why.nodes), 'node')}: {', '.join(why.nodes[:12])}" if why.nodes else None
    helps = tag("ul", [tag("li", each) for each in why.unblocks]) if why.unblocks else None
    lead = "It would start with" if why.state == "waiting" else "What to do"
    none = tag("p", "Nothing that was tried would let it start.", class_="note")
    return panel(
        why.gang,
        tag("div", tag("p", badge, " ", why.reason), where and tag("p", where), class_="stack"),
        join(tag("h3", lead), helps) if helps else none if why.state == "waiting" else None,
        victims(why.victims),
        aside=f"{why.ahead} of its queue before it" if why.ahead else None,
        name="answer",
    )


def _state(why: Why) -> str:
    return "would start" if why.reason == "it would start at once" else why.state


def plan(found: GatherPlan) -> Markup:
    """What gathering would do."""
    nodes = tuple(dict.fromkeys(found.nodes))
    later = f"{found.starts_in_ms / 1000:.0f} s later" if found.starts_in_ms else "at once"
    numbers = figures(
        [
            ("Ranks", count(len(found.nodes))),
            ("Nodes", count(len(nodes))),
            ("Starts", later),
            ("Device-hours lost", f"{found.lost_device_hours:.2f}"),
        ]
    )
    who = victims(found.victims) or tag("p", "Nobody has to stop.", class_="note")
    where = tag("p", ", ".join(nodes[:24]) + (", ..." if len(nodes) > 24 else ""), class_="note")
    body = tag("div", numbers, where, who, class_="stack")
    return panel(f"All of {found.queue} for {found.gang}", body, aside="a plan, nothing was done", name="answer")


def victims(found: Sequence[Victim]) -> Markup | None:
    """Whom a plan would stop or move, and what they lose."""
    if not found:
        return None
    rows = [
        (
            tag("b", each.gang),
            each.queue,
            str(each.ranks),
            f"{each.lost_ms / 60_000:.0f} min",
            f"{each.lost_device_hours:.2f}",
            f"moves to {', '.join(each.moved_to[:4])}" if each.moved_to else "stops",
        )
        for each in found
    ]
    columns = ("job", "queue", "ranks", "loses", "device-hours", "what happens")
    return table(columns, rows, numbers=(2, 3, 4))


def topology(nodes: Sequence[NodeUse]) -> Markup:
    """Every node under what it hangs, with its devices and who is on them."""
    tones = _tones(node.gangs for node in nodes)
    shown = nodes[:MOST_NODES]
    groups = [
        tag(
            "section",
            tag("h3", " / ".join(domain)) if domain else None,
            tag("div", [_node(node, tones) for node in inside], class_="tiles"),
            class_="domain",
        )
        for domain, inside in ((key, list(group)) for key, group in groupby(shown, key=lambda node: node.domain))
    ]
    more = tag("p", f"and {count(len(nodes) - MOST_NODES)} more: mainspring nodes", class_="note")
    return panel("What runs where", tag("div", groups, class_="stack"), more if len(nodes) > MOST_NODES else None)


def _tones(gangs: Iterable[Sequence[str]]) -> dict[str, int]:
    names = sorted({name for each in gangs for name in each})
    return {name: number % TONES for number, name in enumerate(names)}


def _node(node: NodeUse, tones: dict[str, int]) -> Markup:
    state = None if node.open else tag("span", "closed", class_="badge off")
    head = tag("div", tag("b", node.name), state, class_="tile-head")
    cells = [_device(node, number, tones) for number in range(len(node.held))]
    jobs = [tag("span", tag("i", class_=f"job-{tones[name]}"), name, class_="key") for name in node.gangs[:4]]
    more = tag("span", f"and {len(node.gangs) - 4} more", class_="note") if len(node.gangs) > 4 else None
    cores = f"{node.cpu_held_milli / 1000:g} of {node.cpu_milli / 1000:g} cores, {size(node.memory_mib * MIB)}"
    use = _meter(node.cpu_held_milli / node.cpu_milli if node.cpu_milli else 0.0) if not cells else None
    return tag(
        "article",
        head,
        tag("p", node.model or "no accelerator", class_="note"),
        tag("div", cells, class_="devices") if cells else use,
        tag("p", cores, class_="note"),
        tag("div", jobs, more, class_="keys") if jobs else tag("p", "idle", class_="note"),
        class_="tile",
    )


def _device(node: NodeUse, number: int, tones: dict[str, int]) -> Markup:
    """One device: who is on it, how much of it is taken, or that it is sick."""
    if number in node.sick:
        return tag("span", "\N{MULTIPLICATION SIGN}", class_="device sick", title=f"device {number} is sick")
    holders, held = node.holders[number], node.held[number]
    if not held:
        return tag("span", class_="device", title=f"device {number} is free")
    part = "" if held == 1000 else f", {held / 10:g} % of it"
    tone = tones[holders[0]] if holders else 0
    told = f"device {number}: {', '.join(holders)}{part}"
    fill = tag("i", class_=f"job-{tone}", style=f"height:{math.ceil(held / 10)}%")
    return tag("span", fill, class_="device", title=told, aria_label=told, role="img")


def _meter(share: float) -> Markup:
    return tag("div", tag("span", style=f"width:{min(1.0, share):.1%}"), class_="bar", aria_hidden="true")
