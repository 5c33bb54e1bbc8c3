"""Weighted max-min sharing, exact in integers.

Everybody first gets the lesser of wish and floor; what is left rises like water in vessels whose width is the weight,
up to each one's wish. Nobody can gain without taking from somebody who has less per weight. Fractions of a unit go to
those with the largest part of one, then to the earlier.
"""

from collections.abc import Sequence
from fractions import Fraction


def waterfill(total: int, *, wants: Sequence[int], floors: Sequence[int], weights: Sequence[int]) -> list[int]:
    """The share of each child of `total`. Floors that exceed it together are cut in proportion."""
    base = [min(want, floor) for want, floor in zip(wants, floors, strict=True)]
    left = total - sum(base)
    if left <= 0:
        whole = sum(base)
        return _settle(max(0, total), [Fraction(each * total, whole) if whole else Fraction(0) for each in base], base)
    room = [want - each for want, each in zip(wants, base, strict=True)]
    if sum(room) <= left:
        return [max(want, each) for want, each in zip(wants, base, strict=True)]
    level = _level(left, room, weights)
    parts = [min(Fraction(space), level * weight) for space, weight in zip(room, weights, strict=True)]
    settled = _settle(left, parts, room)
    return [each + part for each, part in zip(base, settled, strict=True)]


def _level(left: int, room: Sequence[int], weights: Sequence[int]) -> Fraction:
    """How high the water stands: the level at which vessels of these widths and heights hold `left`."""
    order = sorted(range(len(room)), key=lambda i: Fraction(room[i], weights[i]))
    open_weight = sum(weights)
    for i in order:
        level = Fraction(left, open_weight)
        if level <= Fraction(room[i], weights[i]):
            return level
        left -= room[i]
        open_weight -= weights[i]
    raise AssertionError("the vessels hold all of it")


def _settle(total: int, parts: Sequence[Fraction], most: Sequence[int]) -> list[int]:
    """`parts` in whole units that add up to what they did, at most `total`; none above `most`."""
    whole = [int(part) for part in parts]
    spare = min(total, int(sum(parts))) - sum(whole)
    for i in sorted(range(len(parts)), key=lambda i: (whole[i] - parts[i], i)):
        if spare <= 0:
            break
        if whole[i] < most[i] and parts[i] > whole[i]:
            whole[i] += 1
            spare -= 1
    return whole
