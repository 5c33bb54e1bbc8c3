"""What the documents say exists: links, commands, options. What they must not hold: private paths, stray numbers."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mainspring.cli.app import cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
SOURCES = sorted((ROOT / "src").rglob("*.py"))
WRITTEN = [
    path
    for folder in ("src", "tests", "docs", "benchmarks", "examples", "scripts")
    for path in (ROOT / folder).rglob("*")
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
SPAN = re.compile(r"`(mainspring [^`]+)`")
MARKED = re.compile(r"<!-- bench.*?-->.*?<!-- /bench -->", re.DOTALL)
MEASURED = re.compile(r"\d\s?(?:×|%|times\b|tokens/s|GB/s|TFLOP|requests/s)")
PRIVATE = re.compile(r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|home/\w+)/")
ROOT_COMMAND: Any = typer.main.get_command(cli)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """The anchors GitHub gives to the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each call of our command line in a piece of shell."""
    for line in text.splitlines():
        for part in re.split(r"&&|;|\|", re.sub(r"\s#.*", "", line)):
            if part.split()[:1] == ["mainspring"]:
                yield shlex.split(part.replace("…", " "))[1:]


def complaint(words: list[str]) -> str:
    """What is wrong with a call, seen by its verbs and options; empty when nothing is."""
    command, options = ROOT_COMMAND, {"--help", "-h"}
    for word in words:
        options |= {each for param in command.params for each in (*param.opts, *param.secondary_opts)}
        if word.startswith("-"):
            if word.partition("=")[0] not in options:
                return f"no option {word} in: mainspring {' '.join(words)}"
        elif inner := getattr(command, "commands", {}):
            if word.isupper():  # stands for any verb
                return ""
            verb = word if word in inner else "recipe"  # what `plan` does unless told otherwise
            if verb not in inner:
                return f"no verb {word} in: mainspring {' '.join(words)}"
            command = inner[verb]
    return ""


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for target in LINK.findall(path.read_text("utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        at = (path.parent / file).resolve() if file else path
        if not at.exists() or (anchor and anchor not in anchors(at)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_every_command_in_a_document_exists_with_its_options(path: Path) -> None:
    text = path.read_text("utf-8")
    said = "\n".join([*SHELL.findall(text), *SPAN.findall(text)])
    assert [wrong for words in commands(said) if (wrong := complaint(words))] == []


def test_every_command_in_a_hint_exists_with_its_options() -> None:
    wrong = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            hints = SPAN.findall(text) + re.findall(r"^mainspring [a-z][^,]*", text)
            wrong += [
                f"{name_of(path)}: {bad}" for hint in hints for words in commands(hint) if (bad := complaint(words))
            ]
    assert wrong == []


def test_an_option_or_verb_that_does_not_exist_is_noticed() -> None:
    assert "no verb trian" in complaint(["trian", "recipe.py"])
    assert "no option --rank" in complaint(["train", "recipe.py", "--rank", "2"])
    assert complaint(["train", "recipe.py", "--ranks", "2"]) == ""


def test_measured_numbers_in_the_readme_stand_between_markers_that_a_script_fills() -> None:
    text = MARKED.sub("", (ROOT / "README.md").read_text("utf-8"))
    assert [line for line in text.splitlines() if MEASURED.search(line)] == []


def test_nothing_names_a_folder_of_somebodys_machine() -> None:
    texts = [
        path
        for path in [*WRITTEN, *DOCS]
        if path.suffix in {".py", ".md", ".toml", ".sh", ".html", ".css", ".js", ".json"}
    ]
    assert [name_of(path) for path in texts if PRIVATE.search(path.read_text("utf-8"))] == []
