"""Find a named implementation: built in, installed by another distribution, or in a file of the user's.

One mechanism for devices, engines, readers, embedders and apps. A plugin is an entry point
`<name> = "module:attribute"` in the group `mainspring.<kind>`; its `api` attribute must equal this version.
"""

import difflib
import hashlib
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
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
        near = difflib.get_close_matches(attribute, vars(found), n=1)
        raise SpecError(f"module {module!r} has no {attribute!r}", hint=f"did you mean {near[0]}?" if near else "")
    return getattr(found, attribute)


def run_file(path: Path, source: bytes) -> ModuleType:
    """Run `source`, the text of the user's file `path`, as a module of its own; lets through whatever it raises.

    The text itself is compiled, never a cached byte code: Python believes that one for an edit of the same length
    within a second. The file may import its neighbours, as it could when run as a script.
    """
    name = f"{path.stem}_{hashlib.sha256(str(path).encode() + source).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where typing, pickle and dataclasses look a function's module up
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
    return module
