"""The names `import mainspring` promises: exactly these, each importable, none of them paid for before it is used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mainspring

HEAVY = ("torch", "ray", "lancedb", "lance", "daft", "transformers", "numpy", "pyarrow", "sqlalchemy", "pydantic")


def test_all_is_what_the_package_declares_to_type_checkers() -> None:
    tree = ast.parse(Path(mainspring.__file__).read_text("utf-8"))
    declared = {
        alias.asname or alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert declared == set(mainspring.__all__)
    assert mainspring.__all__ == sorted(
        mainspring.__all__, key=lambda name: (not name.isupper(), name.lower() == name, name)
    )


@pytest.mark.parametrize("name", mainspring.__all__)
def test_every_public_name_can_be_had_and_says_what_it_is(name: str) -> None:
    found = getattr(mainspring, name)
    assert found.__doc__
    assert getattr(importlib.import_module(found.__module__), found.__name__) is found


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="conect"):
        mainspring.conect  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, mainspring; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
