"""Which offer each gang takes, when offers share what there is: Lagrangian prices, then a repair that keeps to limits.

Each device model and each queue's share is a limit. At given prices every gang takes the offer that is worth most after
paying; prices rise where more is taken than there is (Everett 1963). Each round's answer is made to fit, gang by gang,
and the best one that fits is kept. With one limit this is greedy by value per device; with several kinds of device it
finds who has most use of which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROUNDS = 40
Uses = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """What an offer is worth, and how much of each limit it takes."""

    value: float
    uses: Uses


def settle(menus: Sequence[Sequence[Choice]], limits: Sequence[float]) -> tuple[int, ...]:
    """The choice of each menu by its position, -1 for none: within all limits, of the greatest value that was found."""
    prices = [0.0] * len(limits)
    best, most = (-1,) * len(menus), 0.0
    for number in range(ROUNDS):
        wanted = [_dearest(menu, prices) for menu in menus]
        taken = _fit(menus, limits, prices)
        worth = sum(menus[at][pick].value for at, pick in enumerate(taken) if pick >= 0)
        if worth > most:
            best, most = taken, worth
        step = 1.0 / (1 + number)
        for limit, room in enumerate(limits):
            used = sum(menus[at][pick].uses.get(limit, 0.0) for at, pick in enumerate(wanted) if pick >= 0)
            prices[limit] = max(0.0, prices[limit] + step * (used - room) / max(room, 1.0))
        if not any(prices):
            break
    return best


def _net(choice: Choice, prices: Sequence[float]) -> float:
    return choice.value - sum(prices[limit] * amount for limit, amount in choice.uses.items())


def _dearest(menu: Sequence[Choice], prices: Sequence[float]) -> int:
    """The choice that is worth most after paying, -1 when none is worth its price."""
    nets = [_net(choice, prices) for choice in menu]
    at = max(range(len(nets)), key=lambda index: (nets[index], -index), default=-1)
    return at if at >= 0 and nets[at] > 0 else -1


def _fit(menus: Sequence[Sequence[Choice]], limits: Sequence[float], prices: Sequence[float]) -> tuple[int, ...]:
    """Every menu's smallest choice first, by worth for what it takes, then whatever improves and still fits."""
    left = list(limits)
    taken = [-1] * len(menus)
    steps = sorted(
        ((_density(choice, prices), -at, -index) for at, menu in enumerate(menus) for index, choice in enumerate(menu)),
        reverse=True,
    )
    for again in range(2):
        for _, at_, index_ in steps:
            at, index = -at_, -index_
            now = menus[at][taken[at]] if taken[at] >= 0 else None
            choice = menus[at][index]
            gain = _net(choice, prices) - (_net(now, prices) if now else 0.0)
            if again:
                gain = choice.value - (now.value if now else 0.0)
            if gain > 0 and _has(left, choice.uses, now.uses if now else {}):
                _take(left, now.uses if now else {}, sign=1)
                _take(left, choice.uses, sign=-1)
                taken[at] = index
    return tuple(taken)


def _density(choice: Choice, prices: Sequence[float]) -> float:
    """Worth for each unit of what it takes, at these prices; without prices every limit counts alike."""
    paid = sum((prices[limit] + 1e-6) * amount for limit, amount in choice.uses.items())
    return choice.value / paid if paid else float("inf")


def _has(left: Sequence[float], uses: Uses, back: Uses) -> bool:
    return all(left[limit] + back.get(limit, 0.0) >= amount for limit, amount in uses.items())


def _take(left: list[float], uses: Uses, *, sign: int) -> None:
    for limit, amount in uses.items():
        left[limit] += sign * amount
