"""Text in, specs out: the one place where TOML, JSON and `-s a.b=c` become frozen data.

TOML goes through JSON into pydantic's strict mode, which is the only route on which arrays become tuples, `"3"` is
refused for an integer and an unknown key is an error. Every complaint names the dotted path, and a key that does not
exist is answered with the nearest one that does: a typo that silently leaves a default is found hours later.
"""

import dataclasses
import datetime as dt
import difflib
import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from mainspring.spec import MainspringError, NotFound, Plan, SpecError

T = TypeVar("T")
Key = str | int
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


def load_toml(path: str | Path, kind: type[T], overrides: Sequence[str] = ()) -> T:
    """Read the TOML file `path` as a `kind`, after applying `a.b=value` overrides.

    Raises `NotFound` when there is no such file, and `SpecError` naming file, line or dotted path otherwise.
    """
    tables = read_toml(path)
    try:
        plain = to_dict(tables)
    except SpecError as error:
        raise SpecError(f"{path}: {error}", hint=error.hint) from error
    return read_dict(apply_overrides(plain, overrides), kind, where=str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The plain tables of a TOML file."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"no file {path}", hint=f"the working folder is {Path.cwd()}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}", hint="it should be a TOML text file") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from error


def apply_overrides(tables: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `tables` with each `a.b=value` set; array items are named by their index (`nodes.0.count=2`).

    Values are TOML; a word that is not TOML is taken as a string, and the strict reader judges it by its field.
    """
    changed: dict[str, Any] = json.loads(_to_plain_json(tables))
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise SpecError(f"override {override!r} is not key=value", hint="for example -s optim.lr=3e-4")
        _set(changed, keys, value=_value(text.strip()), override=override)
    return changed


def read_dict(data: Mapping[str, Any], kind: type[T], where: str = "") -> T:
    """Read plain tables as a `kind`, strictly; `where` begins every complaint."""
    return read_json(_to_plain_json(data), kind, where=where)


def read_json(text: str | bytes, kind: type[T], where: str = "") -> T:
    """Read JSON as a `kind` (a spec, or any type pydantic knows), strictly."""
    adapter: TypeAdapter[T] = _adapter(kind)
    if kind is Plan:
        text = _upgraded_plan(text)
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        raise _explained(error, kind, where) from error


def _upgraded_plan(text: str | bytes) -> str | bytes:
    """A plan of an earlier format as one of today's; what is no plan at all is left for the reader to complain of."""
    try:
        document = json.loads(text)
        return json.dumps(Plan.upgraded(document)) if isinstance(document, dict) else text
    except (ValueError, KeyError, AttributeError, TypeError):
        return text


def to_json(value: object) -> str:
    """Compact JSON with sorted keys: equal values give equal text, so it can be hashed."""
    return json.dumps(to_dict(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def to_dict(value: object) -> Any:
    """Specs, tuples, paths and mappings as plain dicts, lists and strings, ready for JSON.

    Raises `SpecError` naming the path of anything that JSON cannot hold.
    """
    return _plain(value, "")


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{path.lstrip('.') or 'value'} is {value}, which is no finite number")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{path}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_text_key(key, path): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}.{index}") for index, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, path) for item in value), key=repr)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    raise SpecError(f"{path.lstrip('.') or 'value'} of type {type(value).__name__} cannot be written as JSON")


def _text_key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise SpecError(f"{path.lstrip('.') or 'value'} has the key {key!r}; JSON keys are text")
    return key


def _to_plain_json(tables: Mapping[str, Any]) -> str:
    return json.dumps(to_dict(tables))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(tables: Any, keys: Sequence[str], *, value: Any, override: str) -> None:
    *parents, last = keys
    at = tables
    for key in parents:
        at = at.setdefault(key, {}) if isinstance(at, dict) else _item(at, key, override)
    if isinstance(at, dict):
        at[last] = value
    else:
        _item(at, last, override)
        at[int(last)] = value


def _item(at: Any, key: str, override: str) -> Any:
    if not isinstance(at, list):
        raise SpecError(f"override {override!r}: {key!r} lies under a value that is not a table")
    if not key.isdecimal() or int(key) >= len(at):
        raise SpecError(f"override {override!r}: {key!r} is not one of the {len(at)} items", hint="count from 0")
    return at[int(key)]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except PydanticUserError as error:
        raise SpecError(f"a {getattr(kind, '__name__', kind)} cannot be read from text") from error


def _explained(error: ValidationError, kind: Any, where: str) -> MainspringError:
    complaints: list[str] = []
    hints: list[str] = []
    errors = error.errors(include_url=False)
    missing = {found["loc"] for found in errors if found["type"] in MISSING}
    for found in errors:
        path = ".".join(str(part) for part in _visible(found["loc"], kind))
        said = found["msg"].removeprefix("Value error, ")
        if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            said = "no such key"
            hints.append(_nearest(kind, found["loc"], missing))
        elif found["type"] in MISSING:
            said = "is required"
        elif not isinstance(found["input"], dict | list) and found["type"] not in ("value_error", "json_invalid"):
            said = f"{said}, got {found['input']!r}"
        complaints.append(f"{path}: {said}" if path else said)
    message = "; ".join(dict.fromkeys(complaints))
    hint = "; ".join(dict.fromkeys(filter(None, hints)))
    return SpecError(f"{where}: {message}" if where else message, hint=hint)


def _visible(loc: Sequence[Key], kind: Any) -> Iterator[Key]:
    """The parts of pydantic's location that the writer of the file would recognise: union branches are left out."""
    kinds = [kind]
    for part in loc:
        found = [inner for outer in kinds for inner in _below(outer, part)]
        if found or isinstance(part, int) or not _is_branch(kinds, part):
            yield part
            kinds = found


def _is_branch(kinds: Sequence[Any], part: Key) -> bool:
    """Whether `part` names a branch of a union rather than a key; `X | None` has only one and is not named."""
    branches = [b for kind in kinds for b in _alternatives(kind) if b is not types.NoneType]
    return len(branches) > len(kinds) and part not in {name for branch in branches for name in _fields(branch)}


def _nearest(kind: Any, loc: Sequence[Key], missing: Collection[tuple[Key, ...]]) -> str:
    """The key that was probably meant, best one that is required and missing: the others may well be there."""
    kinds = [kind]
    for part in loc[:-1]:
        kinds = [inner for outer in kinds for inner in _below(outer, part)] or kinds
    known = sorted({name for outer in kinds for branch in _alternatives(outer) for name in _fields(branch)})
    near = difflib.get_close_matches(str(loc[-1]), known, n=len(known) or 1)
    near.sort(key=lambda name: (*loc[:-1], name) not in missing)
    if near:
        return f"did you mean {near[0]}?"
    return "known keys: " + ", ".join(known) if known else ""


def _below(kind: Any, part: Key) -> list[Any]:
    """The types that may stand at `part` of a `kind`."""
    found: list[Any] = []
    for branch in _alternatives(kind):
        fields = _fields(branch)
        if part in fields:
            found.append(fields[str(part)])
        elif typing.get_origin(branch) in (tuple, list) and isinstance(part, int):
            found.append(typing.get_args(branch)[0])
        elif typing.get_origin(branch) in (dict, Mapping) and isinstance(part, str):
            found.append(typing.get_args(branch)[1])
    return found


def _alternatives(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


@functools.cache
def _fields(kind: Any) -> Mapping[str, Any]:
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
