"""Tables: nothing is lost through a pipe, and on a terminal no line is wider than it."""

import sys

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mainspring.cli.output import PROSE_WIDTH, ago, print_table, size, table_lines

WORDS = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=12)
CELL = st.lists(WORDS, max_size=8).map(" ".join)
ROWS = st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6)


@given(ROWS)
def test_a_wide_table_is_one_line_a_row_with_aligned_columns(rows: list[tuple[str, str, str]]) -> None:
    header, *lines = table_lines(("a", "b", "c"), rows, width=sys.maxsize)
    assert len(lines) == len(rows)
    start = cell_len(header[: header.rindex("c")])
    for line, row in zip(lines, rows, strict=True):
        assert line == line.rstrip()
        assert "".join(line.split()) == "".join("".join(row).split())
        assert row[2] == "" or cell_len(line) - cell_len(row[2]) == start


@given(ROWS, st.integers(PROSE_WIDTH, 200))
def test_a_narrow_table_keeps_its_first_and_its_last_column_whole(rows: list[tuple[str, str, str]], width: int) -> None:
    first = [(row[0][:8], row[1], row[2]) for row in rows]
    lines = table_lines(("a", "b", "c"), first, width=width, drop=("b",))
    told = "".join("".join(lines).split())
    for row in first:
        assert all(word in told for word in (*row[0].split(), *row[2].split()) if word.isascii())
    assert all(len(line) <= max(width, PROSE_WIDTH + 10) for line in lines if line.isascii())


def test_columns_go_in_the_order_given_and_only_as_many_as_needed() -> None:
    row = ("train-20261121-023614-872bbc4fc8", "train", "handbook-lm", "FAILED", "3 min", "rank 1 on gpu-7 was killed")
    columns = ("run", "kind", "name", "state", "age", "reason")
    shown = {
        width: table_lines(columns, [row], width=width, drop=("kind", "name", "age"))[0].split()
        for width in (200, 82, 70, 40)
    }
    assert shown[200] == list(columns)
    assert shown[82] == ["run", "state", "age", "reason"]
    assert shown[40] == ["run", "state", "reason"]


def test_an_id_is_never_broken_at_its_hyphens() -> None:
    run = "train-20261121-023614-872bbc4fc8"
    lines = table_lines(("artifact", "age", "run"), [("model:handbook@1", "3 min", run)], width=60, drop=("age",))
    assert lines[1].endswith(run)


def test_text_that_looks_like_markup_is_printed_as_it_is(capsys) -> None:
    print_table(("source", "text"), [("a.md", "[bold]see[/bold] [1]\nnext line")])
    assert capsys.readouterr().out == "source  text\na.md    [bold]see[/bold] [1] next line\n"


def test_sizes_and_ages_are_in_the_unit_a_person_would_choose() -> None:
    assert [size(n) for n in (0, 1023, 1536, 3 * 1024**3)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert ago(None) == ""
    assert ago(0.0).endswith(" d")
