"""How long work tells its caller how far it is: `progress(fraction, message)`, fraction in [0, 1].

Rooms report, hands draw: only the CLI and the console turn these calls into bars.
"""

from collections.abc import Callable

Progress = Callable[[float, str], None]


def silent(fraction: float, message: str) -> None:
    """Report to nobody."""
