"""What is remembered: artifacts, lineage, runs, events, identities. The only room that names a database.

`Store` is exported lazily, so that reading a spec through `mainspring.store.parse` does not import SQLAlchemy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.store.store import Store

__all__ = ["Store"]


def __getattr__(name: str) -> Any:
    if name == "Store":
        from mainspring.store.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
