"""Run benchmarks and write what they found to where the documents quote it.

    python scripts/bench.py                      every benchmark, with its full number of rounds
    python scripts/bench.py cli_help data_dedup  only these
    python scripts/bench.py --quick              does each still run? writes nothing
    python scripts/bench.py --texts              write the stored findings into the texts again, run nothing

A benchmark is `benchmarks/<name>.py`; the last line it prints is one JSON object. It is kept as
`docs/benchmarks/<name>.json`, and shown by `docs/benchmarks/<name>.md` between `<!-- bench -->` and
`<!-- /bench -->`; what is written around these markers stays. In `README.md`, `<!-- bench:<name> -->` is followed by
the headline, `<!-- bench:<name>.table -->` by the table, and `<!-- bench:<name>.<number> -->` by one number, each up
to `<!-- /bench -->`.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = "measure"  # imported by the benchmarks, none itself
OPEN, CLOSE = "<!-- bench -->", "<!-- /bench -->"
MARKED = re.compile(r"<!-- bench:([\w.]+) -->(.*?)<!-- /bench -->", re.DOTALL)

Found = Mapping[str, Any]


def names(root: Path) -> list[str]:
    """Every benchmark."""
    return sorted(path.stem for path in (root / "benchmarks").glob("*.py") if path.stem != SHARED)


def run(name: str, root: Path, *, quick: bool) -> Found:
    """Run one benchmark, showing what it prints, and return its findings; exits when it fails."""
    command = [sys.executable, str(root / "benchmarks" / f"{name}.py"), *(["--quick"] if quick else [])]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                print(line, end="", flush=True)
            lines.append(line)
    if process.returncode or not lines:
        sys.exit(f"error: {name} ended with code {process.returncode}")
    return json.loads(lines[-1])


def table(found: Found) -> str:
    """The findings' table in Markdown."""
    head = [found["columns"], ["---"] * len(found["columns"])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *found["rows"]])


def page_block(found: Found, doc: str) -> str:
    """What stands between the markers of a benchmark's page: question, findings, and where they come from."""
    machine, changed = found["machine"], found["changed_files"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    spec = ", ".join(f"{name} {value}" for name, value in found["spec"].items() if not isinstance(value, list | dict))
    _, _, explanation = doc.partition("\n")
    return "\n\n".join(
        [
            explanation.strip().rpartition("\n\nRun:")[0],
            f"**{found['headline'][0].upper()}{found['headline'][1:]}.**",
            table(found),
            f"Measured on {machine['cpu']} ({machine['architecture']}), {machine['cores']} cores, "
            f"{machine['memory_gib']} GiB, load average {', '.join(map(str, machine['load_average']))}; {versions}; "
            f"commit {found['commit'] or 'unknown'}{f' with {changed} changed files' if changed else ''}; {spec}. "
            f"Every sample is in [{found['benchmark']}.json]({found['benchmark']}.json).",
            f"To repeat: `python scripts/bench.py {found['benchmark']}`",
        ]
    )


def write_page(found: Found, root: Path) -> None:
    """Keep the findings and show them on the benchmark's page, leaving what people wrote around the markers."""
    folder = root / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    name = found["benchmark"]
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    doc = ast.get_docstring(ast.parse((root / "benchmarks" / f"{name}.py").read_text("utf-8"))) or ""
    page = folder / f"{name}.md"
    text = page.read_text("utf-8") if page.exists() else f"# {doc.partition(chr(10))[0]}\n\n{OPEN}\n{CLOSE}\n"
    before, _, rest = text.partition(OPEN)
    _, _, after = rest.partition(CLOSE)
    page.write_text(f"{before}{OPEN}\n{page_block(found, doc)}\n{CLOSE}{after}", encoding="utf-8")


def stored(root: Path) -> dict[str, Found]:
    """The newest kept findings of every benchmark that has any."""
    paths = (root / "docs" / "benchmarks").glob("*.json")
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(paths)}


def quoted(part: str, found: Found) -> str:
    """What a text quotes of a benchmark: the headline, the `table`, or a number, by its name."""
    if part == "table":
        return f"\n{table(found)}\n"
    return f"{found['numbers'][part]:.3g}" if part else found["headline"]


def fill(text: str, findings: Mapping[str, Found]) -> str:
    """`text` with every marked quotation brought up to date; of what was never measured, nothing is changed."""

    def replace(quotation: re.Match[str]) -> str:
        name, _, part = quotation[1].partition(".")
        if name not in findings:
            return quotation[0]
        return f"<!-- bench:{quotation[1]} -->{quoted(part, findings[name])}{CLOSE}"

    return MARKED.sub(replace, text)


def write_texts(root: Path) -> None:
    """Bring the quotations of the README up to date."""
    readme = root / "README.md"
    readme.write_text(fill(readme.read_text("utf-8"), stored(root)), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = names(ROOT)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(known))
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true")
    mode.add_argument("--texts", action="store_true")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; known: {', '.join(known)}")
    for name in [] if options.texts else options.names or known:
        print(f"\n== {name}", flush=True)
        found = run(name, ROOT, quick=options.quick)
        if not options.quick:
            write_page(found, ROOT)
    if not options.quick:
        write_texts(ROOT)


if __name__ == "__main__":
    main(sys.argv[1:])
