"""What running costs per hour: rated power and price of the devices a plan uses.

Rated power is an upper bound for the devices and leaves the host, cooling and idle neighbours out; the meter of a
run says what it really was.
"""

from mainspring.plan.layout import Layout
from mainspring.spec import Mesh


def nothing(_layout: Layout, _mesh: Mesh) -> float:
    """The rate of what is compared by time alone."""
    return 1.0


def watts(layout: Layout, mesh: Mesh) -> float:
    """Power of the devices in use; a rank that owns a share of a device draws that share."""
    inner = mesh.tp * mesh.cp
    return inner * sum(c.replicas * sum(r.device.power_watts * r.share for r in c.ranks) for c in layout.columns)


def usd_per_hour(layout: Layout, mesh: Mesh) -> float:
    """Price of the devices in use."""
    inner = mesh.tp * mesh.cp
    return inner * sum(c.replicas * sum(r.device.price_usd_per_hour * r.share for r in c.ranks) for c in layout.columns)
