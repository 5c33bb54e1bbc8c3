"""Find a named implementation: built in, or installed by another distribution.

One mechanism for devices, engines, readers, embedders and apps. A plugin is an entry point
`<name> = "module:attribute"` in the group `mainspring.<kind>`; its `api` attribute must equal this version.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from mainspring.spec.errors import SpecError

API = 1


def load(kind: str, name: str, builtin: Mapping[str, str]) -> Any:
    """Return what is registered as `name`; an installed plugin shadows a built-in.

    `builtin` is the calling room's own `name -> "module:attribute"` table, so that no lower room names a higher
    one, not even in a string. Raises `SpecError` for an unknown name or a plugin of another api version.
    """
    found = {**builtin, **{e.name: e.value for e in entry_points(group=f"mainspring.{kind}")}}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise SpecError(f"no {kind} named {name!r}", hint=f"known: {known}")
    plugin = load_entry(found[name])
    if getattr(plugin, "api", None) != API:
        raise SpecError(f"{kind} {name!r} speaks api {getattr(plugin, 'api', None)}, this is {API}")
    return plugin


def load_entry(entry: str) -> Any:
    """Import `"package.module:attribute"` and return the attribute; `SpecError` says which half is missing."""
    module, colon, attribute = entry.partition(":")
    if not colon or not module or not attribute:
        raise SpecError(f"{entry!r} is not an entry point", hint='write it as "package.module:function"')
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        raise SpecError(f"cannot import {module!r} for {entry!r}: {error}") from error
    if not hasattr(found, attribute):
        raise SpecError(f"module {module!r} has no {attribute!r}")
    return getattr(found, attribute)
