"""The user's handle: one object per workspace, one method per verb, no logic of its own.

Exported lazily, so that naming a verb's default does not import the store.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.workspace.workspace import LOOPBACK, VOCAB, Dedup, OnEvent, Run, Workspace, connect

__all__ = ["LOOPBACK", "VOCAB", "Dedup", "OnEvent", "Run", "Workspace", "connect"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("mainspring.workspace.workspace"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
