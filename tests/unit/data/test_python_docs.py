"""The documentation inside the running Python as documents."""

import subprocess
import sys

import pyarrow as pa
import pytest

from mainspring.data.read import read
from mainspring.spec import SpecError


@pytest.fixture(scope="module")
def docs() -> pa.Table:
    return read("python:docs")[0]


def test_there_are_thousands_of_documents_each_named_once(docs: pa.Table) -> None:
    sources = docs["source"].to_pylist()
    assert len(sources) > 2500
    assert len(set(sources)) == len(sources)
    assert sum(source.startswith("topic:") for source in sources) > 50


def test_functions_classes_modules_builtins_and_topics_are_all_there(docs: pa.Table) -> None:
    text = dict(zip(docs["source"].to_pylist(), docs["text"].to_pylist(), strict=True))
    assert "join(a, *p)" in text["os.path.join"]
    assert "Join two or more pathname components" in text["os.path.join"]
    assert "## Path.exists" in text["pathlib.Path"]
    assert "`join`" in text["os.path"]
    assert "measured in radians" in text["math.sin"]
    assert "Return the number of items in a container" in text["len"]
    assert "## deque.appendleft" in text["collections.deque"]
    assert text["topic:assert"].startswith('# The "assert" statement\n')


def test_a_module_names_its_members_but_does_not_repeat_their_text(docs: pa.Table) -> None:
    text = dict(zip(docs["source"].to_pylist(), docs["text"].to_pylist(), strict=True))
    assert "`dedent`" in text["textwrap"]
    assert "Remove any common leading whitespace" in text["textwrap.dedent"]
    assert "Remove any common leading whitespace" not in text["textwrap"]


def test_private_names_and_tests_are_left_out(docs: pa.Table) -> None:
    for source in docs["source"].to_pylist():
        assert not any(part.startswith("_") for part in source.split(".")), source
        assert not source.startswith(("test.", "idlelib."))


def test_reading_twice_gives_the_same_documents(docs: pa.Table) -> None:
    assert read("python:docs")[0]["id"].to_pylist() == docs["id"].to_pylist()


def test_modules_with_side_effects_are_read_without_being_imported() -> None:
    code = (
        "import sys\nfrom mainspring.data.readers.python_docs import PythonDocs\n"
        "n = sum(1 for _ in PythonDocs().read('docs', progress=lambda f, m: None))\n"
        "print(n, *sorted({'antigravity', 'this', 'tkinter', 'turtle', 'webbrowser', 'sqlite3'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) > 2500
    assert out[1:] == []


def test_another_python_source_is_refused() -> None:
    with pytest.raises(SpecError, match="python:dosc does not exist"):
        read("python:dosc")
