"""Who runs where and when, and starting it. The only room that names Ray, and only once a job is submitted.

`Launcher` and `survey` are looked up on first use, so that importing the room costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.cluster.handle import Handle
    from mainspring.cluster.launcher import Launcher
    from mainspring.cluster.surveyor import survey
    from mainspring.cluster.verdict import require_success

__all__ = ["Handle", "Launcher", "require_success", "survey"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    homes = {"Handle": "handle", "survey": "surveyor", "require_success": "verdict"}
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{homes.get(name, 'launcher')}"), name)
