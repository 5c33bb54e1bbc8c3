"""Chunks: exact offsets, nothing lost, structure never cut."""

import hashlib
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.apps.rag.chunk import HARD_LIMIT, chunk_document
from mainspring.evaluate.sentences import sentences
from mainspring.spec import Document, SpecError

HANDBOOK = """# Handbook

Welcome. This is the start.

## Paths

Use `join` to join paths. It inserts separators. It never checks that the file exists.

```python
# not a heading
join("a", "b")

# still code
```

- first item
  with a second line

- second item

### Windows

Drive letters matter.

Setext title
============

Last words.
"""

LINES = st.sampled_from(
    [
        "# One",
        "## Two",
        "### Three",
        "",
        "",
        "plain words here. And more of them! Really?",
        "- item",
        "  more",
        "1. first",
        "```",
        "~~~",
        "| a | b |",
        "======",
        "----",
        ">>> f(1)",
        "2",
        "中文句子。另一句。",
        "x" * 300,
        "word " * 80,
        "\t",
        " " * 600 + "far",
        "\u00a0",
        "\r",
        "e.g. this one. Dr. Who came.",
    ]
)


def document(text: str, kind: str = "markdown", title: str = "T") -> Document:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Document(id=digest, source="s.md", title=title, text=text, format=kind)


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=40), st.sampled_from(["markdown", "text"]), st.sampled_from([50, 120, 1000]))
def test_offsets_are_exact_and_no_character_is_lost(lines: list[str], kind: str, target: int) -> None:
    doc = document("\n".join(lines), kind)
    chunks = chunk_document(doc, target=target)
    covered = [False] * len(doc.text)
    for chunk in chunks:
        assert doc.text[chunk.start : chunk.end] == chunk.text == chunk.text.strip()
        assert len(chunk.text) <= (HARD_LIMIT + 2) * target
        covered[chunk.start : chunk.end] = [True] * (chunk.end - chunk.start)
    assert all(seen or char.isspace() for seen, char in zip(covered, doc.text, strict=True))
    assert [c.start for c in chunks] == sorted({c.start for c in chunks})
    assert len({c.id for c in chunks}) == len(chunks)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["a = 1", "", "# c", "- x", "## y", "words. more words."]), max_size=30),
    st.text("ab. ", max_size=300),
)
def test_a_code_fence_is_never_cut(code: list[str], prose: str) -> None:
    fence = "\n".join(["```", *code, "```"])
    doc = document(f"# T\n\n{prose}\n\n{fence}\n\n{prose}\n")
    assert any(fence in chunk.text for chunk in chunk_document(doc, target=60))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["one.", "two. three.", "four\n  five", "six\n\n  seven"]), min_size=1, max_size=12))
def test_a_list_is_never_cut(items: list[str]) -> None:
    block = "\n".join(f"- {item}" for item in items)
    doc = document(f"Before it. Words and words and words.\n\n{block}\n\nAfter it, more words.")
    assert any(block in chunk.text for chunk in chunk_document(doc, target=50))


def test_the_path_names_the_title_and_the_headings_above() -> None:
    chunks = chunk_document(document(HANDBOOK, title="Handbook"), target=120)
    by_text = {
        word: c.path for c in chunks for word in ("inserts", "still code", "Drive", "Last words") if word in c.text
    }
    assert by_text["inserts"] == ("Handbook", "Paths")
    assert by_text["still code"] == ("Handbook", "Paths")
    assert by_text["Last words"] == ("Handbook", "Setext title")
    assert all("# not a heading" not in part for path in by_text.values() for part in path)


def test_consecutive_chunks_of_a_long_section_share_a_sentence() -> None:
    text = " ".join(f"Sentence number {n} says something of its own." for n in range(60))
    chunks = chunk_document(document(text), target=400)
    assert len(chunks) > 5
    for left, right in pairwise(chunks):
        assert left.end > right.start, "no overlap"
        assert right.text.startswith("Sentence")


def test_a_heading_is_never_left_alone_at_the_end_of_a_chunk() -> None:
    text = "# A\n\n" + "Words go here. " * 14 + "\n\n## B\n\n```\n" + "code = 1\n" * 60 + "```\n"
    last = chunk_document(document(text), target=250)[-1]
    assert last.text.startswith("## B")
    assert last.text.endswith("```")


def test_a_plain_text_document_keeps_its_hash_lines_as_text() -> None:
    text = "# a comment in a shell script\nls\n\n# another\nls -l\n"
    assert {chunk.path for chunk in chunk_document(document(text, "text"))} == {("T",)}


def test_a_reflowed_text_underline_is_a_heading_and_not_a_fence() -> None:
    text = "Intro\n*****\n\nHello there.\n\nDetails\n~~~~~~~\n\n" + "More words follow. " * 20
    assert chunk_document(document(text, title=""), target=100)[-1].path == ("Intro", "Details")


def test_one_enormous_line_is_cut_in_linear_time() -> None:
    started = time.monotonic()
    chunks = chunk_document(document("x" * 5_000_000))
    assert len(chunks) == 5000
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("text", ["", "   \n\n\t", "\u00a0"])
def test_an_empty_document_has_no_chunks(text: str) -> None:
    assert chunk_document(document(text)) == ()


def test_a_target_too_small_to_hold_a_sentence_is_refused() -> None:
    with pytest.raises(SpecError, match="49"):
        chunk_document(document("x"), target=49)


def test_sentences_survive_abbreviations_numbers_and_chinese() -> None:
    text = "Use e.g. this one. Python 3.11 is fine! See Dr. Who (J. Smith). 这是中文。第二句。 Really?\n\nNew block"
    assert sentences(text) == [
        "Use e.g. this one.",
        "Python 3.11 is fine!",
        "See Dr. Who (J. Smith).",
        "这是中文。",
        "第二句。",
        "Really?",
        "New block",
    ]
