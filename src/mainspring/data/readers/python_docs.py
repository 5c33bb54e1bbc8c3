"""The documentation inside the running Python, as Markdown: `python:docs`.

Three parts: the language-reference topics (`pydoc_data`), the docstrings of the standard library read from its source
by `ast` (so nothing is imported for its side effects), and those of C modules, which have no source and are imported
from a list known to be harmless. One document for each module, public class (with its methods) and public function;
a module's document names its members but does not repeat their text, so that holding a function out of training does
not leave its docstring in another document.
"""

import ast
import importlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from mainspring.data.documents import make_document
from mainspring.spec import Document, Progress, Skipped, SpecError
from mainspring.spec.plugin import API

# Modules whose classes are documented under another name, and the name users write.
_PUBLIC_NAME = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_sitebuiltins": "site",
    "_strptime": "time",
    "_weakrefset": "weakref",
    "posixpath": "os.path",
}
# Near-copies of other modules (Windows paths, bundled tests and demos): read last, or not at all.
_LAST = ("genericpath", "ntpath", "nturl2path")
_NOT_READ = {"antigravity", "idlelib", "lib2to3", "test", "tests", "this", "turtledemo", "idle_test"}
# C modules that only define things when imported.
_C_MODULES = (
    "builtins", "_abc", "_asyncio", "_bisect", "_bz2", "_codecs", "_collections", "_contextvars", "_csv", "_ctypes",
    "_datetime", "_decimal", "_elementtree", "_functools", "_hashlib", "_heapq", "_io", "_json", "_locale", "_lzma",
    "_operator", "_pickle", "_queue", "_random", "_signal", "_socket", "_sqlite3", "_sre", "_ssl", "_stat",
    "_statistics", "_string", "_struct", "_symtable", "_thread", "_tracemalloc", "_uuid", "_warnings", "_weakref",
    "_zoneinfo", "array", "atexit", "binascii", "cmath", "errno", "faulthandler", "fcntl", "gc", "grp",
    "itertools", "marshal", "math", "mmap", "posix", "pwd", "pyexpat", "resource", "select", "sys", "syslog",
    "termios", "time", "unicodedata", "zlib",
)  # fmt: skip
_UNDERLINES = {"*": "#", "=": "##", "-": "###", "^": "####", "~": "####", '"': "####"}

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class PythonDocs:
    """Reader plugin of the scheme `python`."""

    api: ClassVar[int] = API

    def read(self, rest: str, *, progress: Progress) -> Iterator[Document | Skipped]:
        """Topics, then builtins and C modules' own names where no source has them, in a fixed order."""
        if rest != "docs":
            raise SpecError(f"the source python:{rest} does not exist", hint="known: python:docs")
        yield from _topics()
        seen: set[str] = set()
        paths = list(_sources())
        for number, (module, path) in enumerate(paths):
            if number % 20 == 0:
                progress(number / len(paths), f"docstrings of {module}")
            for item in _module_documents(module, path):
                if isinstance(item, Skipped):
                    yield item
                elif item.source not in seen:
                    seen.add(item.source)
                    yield item
        for name in _C_MODULES:
            for item in _c_documents(name):
                if item.source not in seen:
                    seen.add(item.source)
                    yield item


def _topics() -> Iterator[Document | Skipped]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        yield Skipped(source="pydoc_data.topics", reason=f"this Python has no topics: {error}")
        return
    for name, text in sorted(topics.items()):
        markdown = _to_markdown(text)
        title = markdown.partition("\n")[0].lstrip("# ") if markdown.startswith("# ") else name
        yield make_document(f"topic:{name}", markdown, title=title, kind="python", parent="topics")


def _to_markdown(text: str) -> str:
    """Underlined reStructuredText titles as Markdown headings; the rest is Markdown enough."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        mark = line[:1]
        underline = mark in _UNDERLINES and line == mark * len(line) and len(line) >= 3
        if underline and lines and lines[-1].strip() and not lines[-1].startswith(" "):
            lines[-1] = f"{_UNDERLINES[mark]} {lines[-1]}"
        else:
            lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


def _sources() -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every public standard-library module that has source."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[tuple[bool, str, Path]] = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] not in sys.stdlib_module_names or not _NOT_READ.isdisjoint(parts):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        public = _PUBLIC_NAME.get(name, name)
        if not any(part.startswith("_") for part in public.split(".")):
            found.append((name in _LAST, public, path))
    for _, name, path in sorted(found):
        yield name, path


def _module_documents(module: str, path: Path) -> Iterator[Document | Skipped]:
    try:
        with warnings.catch_warnings(action="ignore"):  # the library's style is not the reader's business
            tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        yield Skipped(source=module, reason=f"its source cannot be read: {error}")
        return
    members: list[tuple[str, str]] = []
    documents: list[Document] = []
    for node in _definitions(tree.body):
        text = _class_text(node, module) if isinstance(node, ast.ClassDef) else _function_text(node, module)
        if not text:
            continue
        name = f"{module}.{node.name}"
        members.append((node.name, "class" if isinstance(node, ast.ClassDef) else "function"))
        documents.append(make_document(name, text, title=name, kind="python", parent=module))
    summary = ast.get_docstring(tree)
    if summary:
        yield _module_document(module, summary, members)
    yield from documents


def _module_document(module: str, summary: str, members: list[tuple[str, str]]) -> Document:
    text = f"# Module {module}\n\n{summary.strip()}\n"
    for kind, heading in (("class", "Classes"), ("function", "Functions")):
        names = [f"`{name}`" for name, of in members if of == kind]
        if names:
            text += f"\n## {heading}\n\n{', '.join(names)}\n"
    return make_document(module, text, title=module, kind="python")


def _definitions(body: list[ast.stmt]) -> Iterator[_Definition]:
    """Public classes and functions of a body, also under `if` and `try`; of several of one name the first."""
    seen: set[str] = set()
    stack = list(reversed(body))
    while stack:
        node = stack.pop()
        if isinstance(node, _Definition):
            if not node.name.startswith("_") and node.name not in seen:
                seen.add(node.name)
                yield node
        elif isinstance(node, ast.If):
            stack += reversed(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            stack += reversed(node.body + [s for h in node.handlers for s in h.body] + node.orelse)


def _function_text(node: ast.FunctionDef | ast.AsyncFunctionDef, module: str) -> str:
    """Heading with the signature, and the docstring; empty when there is none."""
    summary = ast.get_docstring(node)
    if not summary or not summary.strip():
        return ""
    return f"# {module}.{node.name}\n\n    {_signature(node)}\n\n{summary.strip()}\n"


def _class_text(node: ast.ClassDef, module: str) -> str:
    """Class docstring and one section for each documented public method; empty when nothing is documented."""
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    summary = (ast.get_docstring(node) or "").strip()
    sections: list[str] = []
    initialiser = ""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            initialiser = f"    {_signature(member, name=node.name, drop_first=True)}\n\n"
    for member in _definitions(node.body):
        text = "" if isinstance(member, ast.ClassDef) else (ast.get_docstring(member) or "").strip()
        if text and not isinstance(member, ast.ClassDef):
            static = any(ast.unparse(mark) == "staticmethod" for mark in member.decorator_list)
            signature = _signature(member, drop_first=not static)
            sections.append(f"## {node.name}.{member.name}\n\n    {signature}\n\n{text}\n")
    if not summary and not sections:
        return ""
    head = f"# class {module}.{node.name}{bases}\n\n{initialiser}"
    return "\n".join([f"{head}{summary}".rstrip() + "\n", *sections])


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, *, name: str = "", drop_first: bool = False) -> str:
    arguments = node.args
    if drop_first and arguments.args:
        arguments = ast.arguments(
            posonlyargs=arguments.posonlyargs,
            args=arguments.args[1:],
            vararg=arguments.vararg,
            kwonlyargs=arguments.kwonlyargs,
            kw_defaults=arguments.kw_defaults,
            kwarg=arguments.kwarg,
            defaults=arguments.defaults,
        )
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and not name else ""
    return f"{name or node.name}({ast.unparse(arguments)}){returns}"


def _c_documents(name: str) -> Iterator[Document]:
    """Documents of one C module's public members, under the module name they give themselves."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return  # not part of this build of Python
    members: list[tuple[str, str]] = []
    documents: list[Document] = []
    for key, member in sorted(vars(module).items()):
        if key.startswith("_") or isinstance(member, ModuleType) or not callable(member):
            continue
        document = _c_member(key, member, name)
        if document:
            members.append((key, "class" if inspect.isclass(member) else "function"))
            documents.append(document)
    if module.__doc__ and not name.startswith("_"):
        yield _module_document(name, inspect.cleandoc(module.__doc__), members)
    yield from documents


def _c_member(key: str, member: Any, module: str) -> Document | None:
    home = getattr(member, "__module__", None) or module
    home = {"nt": "os", "posix": "os", "_io": "io"}.get(home, home).removeprefix("_")
    name = key if home == "builtins" else f"{home}.{key}"
    summary = _own_doc(member)
    if not inspect.isclass(member):
        text = f"# {name}\n\n    {_c_signature(member, key)}\n\n{summary}\n" if summary else ""
    else:
        sections = [
            f"## {key}.{attribute}\n\n    {_c_signature(method, attribute)}\n\n{text}\n"
            for attribute, method in sorted(vars(member).items())
            if not attribute.startswith("_") and callable(method) and (text := _own_doc(method))
        ]
        text = "\n".join([f"# class {name}\n\n{summary}".rstrip() + "\n", *sections])
        text = text if summary or sections else ""
    return make_document(name, text, title=name, kind="python", parent=home) if text else None


def _own_doc(member: Any) -> str:
    """The docstring, unless it is only inherited from `object` or `type`."""
    text = member.__doc__
    return inspect.cleandoc(text) if isinstance(text, str) and text != object.__doc__ else ""


def _c_signature(member: Any, key: str) -> str:
    try:
        return key + re.sub(r"\$?\bself\b,? ?/?,? ?", "", str(inspect.signature(member)))
    except (ValueError, TypeError):
        return f"{key}(...)"
