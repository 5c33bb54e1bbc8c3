"""When two executions of a step would give the same result: the action key.

    key = SHA-256(code, declared version, arguments, contents of watched files, version of mainspring)

Code is the source of the function and of every function and constant of its own module that it mentions, followed
through calls, so that editing a step or its neighbour reruns it and editing an unrelated step does not. Lists and
tables count as constants when their name is in capitals. What other modules do is not seen; a step that depends on
them declares a `version`. Artifacts and paths among the arguments count
by content, so a step that ran again and made the same thing does not make its dependants stale.
"""

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

from mainspring.flow.check import Checked
from mainspring.spec import Artifact, NotFound, SpecError
from mainspring.store import Store
from mainspring.store.parse import to_dict, to_json

CONSTANT = (str, int, float, bool, bytes, tuple, frozenset, type(None))
PLATFORM = version("mainspring")


class Digests:
    """Digests of files, folders and functions, each computed once as long as it stays the same.

    A file is read again when its size, modification time or inode changed.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], str]] = {}
        self._code: dict[Callable[..., Any], str] = {}

    def of(self, path: Path) -> str:
        """The digest of a file, or of a folder's relative paths and contents. Raises `NotFound` when it is gone."""
        try:
            if path.is_dir():
                listed = [[at.relative_to(path).as_posix(), self._file(at)] for at in _files(path)]
                return _sha(to_json(listed).encode())
            return self._file(path)
        except OSError as error:
            raise NotFound(f"cannot read {path}: {error.strerror or error}") from error

    def _file(self, path: Path) -> str:
        stat = path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        known = self._known.get(str(path))
        if known and known[0] == stamp:
            return known[1]
        with path.open("rb") as reader:
            digest = hashlib.file_digest(reader, "sha256").hexdigest()
        self._known[str(path)] = (stamp, digest)
        return digest

    def code(self, call: Callable[..., Any], entry: str) -> str:
        """The digest of a function's source with everything of its own module that it mentions."""
        if call not in self._code:
            parts: dict[str, str] = {}
            _gather(call, entry, parts)
            self._code[call] = _sha(to_json(parts).encode())
        return self._code[call]


def action_key(checked: Checked, given: Mapping[str, Any], digests: Digests) -> str:
    """The key of calling `checked` with `given`, whose references have been replaced by values."""
    node = checked.node
    parts = {
        "platform": PLATFORM,
        "code": digests.code(node.call, node.entry),
        "version": node.options.version,
        "given": encode(given, digests),
        "watch": [digests.of(path) for path in checked.watch],
    }
    return _sha(to_json(parts).encode())


def encode(value: Any, digests: Digests) -> Any:
    """A step's value as plain data in which artifacts and paths carry their digests."""
    if isinstance(value, Artifact):
        return {"$artifact": value.ref, "digest": value.digest}
    if isinstance(value, Path):
        return {"$path": str(value), "digest": digests.of(value) if value.exists() else ""}
    if isinstance(value, Mapping):
        return {str(key): encode(item, digests) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, digests) for item in value]
    return to_dict(value)


def decode(value: Any, store: Store, digests: Digests) -> Any:
    """The inverse of `encode`. Raises `NotFound` when an artifact or path is not any more what it was."""
    if isinstance(value, list):
        return [decode(item, store, digests) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$artifact", "digest"}:
        return store.resolve(value["$artifact"])
    if value.keys() == {"$path", "digest"}:
        path = Path(value["$path"])
        if (digests.of(path) if path.exists() else "") != value["digest"]:
            raise NotFound(f"{path} has changed since the step made it")
        return path
    return {key: decode(item, store, digests) for key, item in value.items()}


def _gather(call: Any, name: str, parts: dict[str, str]) -> None:
    if isinstance(call, MethodType):
        call = call.__func__
    call = inspect.unwrap(call)
    if not isinstance(call, FunctionType):
        parts[name] = _source(call) if inspect.isclass(call) else name  # compiled: its name is all there is
        return
    parts[name] = _source(call)
    for free, cell in zip(call.__code__.co_freevars, call.__closure__ or (), strict=True):
        _gather_value(f"{name}.{free}", cell.cell_contents, call, parts)
    for mentioned in sorted(_mentioned(call.__code__)):
        if mentioned in call.__globals__ and f".{mentioned}" not in parts:
            value = call.__globals__[mentioned]
            if _is_own(value, call) or mentioned.isupper():
                _gather_value(f".{mentioned}", value, call, parts)


def _is_own(value: Any, call: FunctionType) -> bool:
    return isinstance(value, CONSTANT) or (
        isinstance(value, FunctionType | type) and value.__module__ == call.__module__
    )


def _gather_value(name: str, value: Any, owner: FunctionType, parts: dict[str, str]) -> None:
    if isinstance(value, FunctionType | type):
        if name not in parts:
            _gather(value, name, parts)
        return
    try:
        parts[name] = to_json(value) if not isinstance(value, CONSTANT) else _written(value)
    except SpecError as error:
        if name.startswith("."):
            return  # a module's own object in capitals, such as a lock or a logger
        inner = name.rpartition(".")[2]
        raise SpecError(
            f"{owner.__qualname__} uses {inner!r} of the function around it, which cannot be compared",
            hint="pass it as an argument, or set cache = false",
        ) from error


def _written(constant: Any) -> str:
    """Like `repr`, but sets in an order that is the same in every process."""
    if isinstance(constant, frozenset):
        return f"{{{', '.join(sorted(map(_written, constant)))}}}"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_written, constant))},)"
    return repr(constant)


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # typed at a prompt: compare what was compiled
        code = getattr(value, "__code__", None)
        return f"{code.co_code.hex()} {code.co_consts!r} {code.co_names!r}" if code else repr(value)


def _mentioned(code: CodeType) -> Iterable[str]:
    names = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names.update(_mentioned(inner))
    return names


def _files(folder: Path) -> Iterator[Path]:
    for at, below, names in os.walk(folder):
        below.sort()
        for name in sorted(names):
            path = Path(at) / name
            if path.is_file():
                yield path


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
