"""What running costs per hour: rated power and price of the devices a plan uses.

Rated power is an upper bound for the devices and leaves the host, cooling and idle neighbours out; the meter of a
run says what it really was.
"""

from collections.abc import Sequence

from mainspring.plan.layout import Rank


def watts(ranks: Sequence[Rank]) -> float:
    """Power of the devices in use; a rank that owns a share of a device draws that share."""
    return sum(rank.device.power_watts * rank.share for rank in ranks)


def usd_per_hour(ranks: Sequence[Rank]) -> float:
    """Price of the devices in use."""
    return sum(rank.device.price_usd_per_hour * rank.share for rank in ranks)
