"""What running costs per hour: rated power and price of the devices a plan uses.

Rated power is an upper bound for the devices and leaves the host, cooling and idle neighbours out; the meter of a
run says what it really was.
"""

from mainspring.plan.layout import Offer


def watts(offer: Offer) -> float:
    """Power of the devices in use; a rank that owns a share of a device draws that share."""
    return sum(rank.device.power_watts * rank.share * count for rank, count in offer.groups)


def usd_per_hour(offer: Offer) -> float:
    """Price of the devices in use."""
    return sum(rank.device.price_usd_per_hour * rank.share * count for rank, count in offer.groups)
