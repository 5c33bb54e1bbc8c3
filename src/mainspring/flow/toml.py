"""Write the part of TOML that a flow needs; the standard library only reads it."""

import json
import re
from collections.abc import Mapping
from typing import Any

from mainspring.spec import SpecError

BARE = re.compile(r"[A-Za-z0-9_-]+")


def write_toml(tables: Mapping[str, Any]) -> str:
    """`tables` as TOML: mappings down to the second level become headed tables, deeper ones inline tables."""
    blocks: list[str] = []
    for name, table in tables.items():
        plain = {key: item for key, item in table.items() if not isinstance(item, Mapping)}
        if plain or not table:
            blocks.append(_block(_key(name), plain))
        blocks += [
            _block(f"{_key(name)}.{_key(key)}", item) for key, item in table.items() if isinstance(item, Mapping)
        ]
    return "\n".join(blocks)


def _block(heading: str, table: Mapping[str, Any]) -> str:
    return f"[{heading}]\n" + "".join(f"{_key(key)} = {_value(item, key)}\n" for key, item in table.items())


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else _text(name)


def _value(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {_value(item, f'{where}.{key}')}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, where) for item in value) + "]"
    raise SpecError(f"{where}: TOML cannot hold {value!r}", hint="leave the argument out, or give it a default")


def _text(text: str) -> str:
    # JSON and basic TOML strings escape alike, except that TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
