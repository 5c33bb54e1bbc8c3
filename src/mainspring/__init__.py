"""mainspring: from raw documents to a served assistant that gets better, on mixed and failing hardware.

Public names are imported on first use (PEP 562), so that `import mainspring` costs milliseconds and `--help` never
loads torch or ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.models.annotate import replicate as replicate
    from mainspring.models.annotate import split as split
    from mainspring.spec import MainspringError as MainspringError
    from mainspring.spec import Settings as Settings
    from mainspring.spec import TrainConfig as TrainConfig
    from mainspring.train.recipe import Recipe as Recipe
    from mainspring.workspace import Run as Run
    from mainspring.workspace import Workspace as Workspace
    from mainspring.workspace import connect as connect

__version__ = "0.1.0"
__all__ = ["MainspringError", "Recipe", "Run", "Settings", "TrainConfig", "Workspace", "connect", "replicate", "split"]

_HOME = {
    "MainspringError": "mainspring.spec",
    "Recipe": "mainspring.train.recipe",
    "Run": "mainspring.workspace",
    "Settings": "mainspring.spec",
    "TrainConfig": "mainspring.spec",
    "Workspace": "mainspring.workspace",
    "connect": "mainspring.workspace",
    "replicate": "mainspring.models.annotate",
    "split": "mainspring.models.annotate",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'mainspring' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
