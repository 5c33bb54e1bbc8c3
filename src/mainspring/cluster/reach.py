"""Which of the driver's files a node sees: looked at on the node itself, as no configuration proves it.

A node whose own environment gives it another home (`MAINSPRING_HOME`) keeps the files of its runs there, even where
the driver's happen to be visible.
"""

from collections.abc import Sequence
from pathlib import Path

from mainspring.spec import Settings, load_settings


def own_home() -> Path | None:
    """The home that this node's environment names, if it names one."""
    here = load_settings()
    return here.home_path if here.home != Settings().home else None


def sees(paths: Sequence[str], run_root: str) -> bool:
    """Whether this node sees every one of `paths`, and shares those that lie below the driver's `run_root`.

    Without a `run_root` this node is the driver's own machine.
    """
    home = own_home() if run_root else None
    apart = home is not None and not Path(run_root).is_relative_to(home)
    return all(Path(path).exists() and not (apart and Path(path).is_relative_to(run_root)) for path in paths)
