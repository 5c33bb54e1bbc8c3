"""The one place where Daft and Lance are imported, with their progress bars and telemetry off.

Import it where a frame is needed, not at the top of a room: the two cost half a second.
"""

from mainspring.spec.settings import quiet_third_parties

quiet_third_parties()

import daft  # noqa: E402  the switches above are read on import
import lance  # noqa: E402
from lance.dataset import ColumnOrdering  # noqa: E402

__all__ = ["ColumnOrdering", "daft", "lance"]
