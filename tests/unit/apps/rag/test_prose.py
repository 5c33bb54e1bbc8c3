"""Statements are exact pieces of prose, under their heading; what is shown of them loads, links and cites nothing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mainspring.apps.rag.prose import LONGEST, plain, statements

PAGE = """# class mailbox.Box(Base)

    Box(path, *, create=True)

A box that keeps messages. It is
safe to open twice.

## Box.add

    add(message)

Add message and return its key.

Older API
=========
call(...): Runs a command, waits for it to complete, then returns
    the return code.
getoutput(...): Runs a command and
          returns the output

yield_stmt ::= yield_expression "and more words here"

For example, this sums integers::

    parser.add_argument('integers', help='an integer to be summed')
    and this line says nothing to anybody

>>> box.add(message) # returns the key of the message
'the key of the message'

```
fenced words that are code and not prose
```

- first item of several
  that goes on
- second item is here

| a table | of words |
"""


def test_prose_is_found_and_code_is_passed_over() -> None:
    found = [(one.heading, " ".join(one.text.split())) for one in statements(PAGE)]
    assert found == [
        ("class mailbox.Box(Base)", "A box that keeps messages."),
        ("class mailbox.Box(Base)", "It is safe to open twice."),
        ("Box.add", "Add message and return its key."),
        ("Older API", "call(...): Runs a command, waits for it to complete, then returns the return code."),
        ("Older API", "getoutput(...): Runs a command and returns the output"),
        ("Older API", "For example, this sums integers::"),
        ("Older API", "first item of several that goes on"),
        ("Older API", "second item is here"),
    ]
    assert statements(PAGE)[0].signature == "Box(path, *, create=True)"
    assert statements(PAGE)[2].signature == "add(message)"
    assert statements(PAGE)[3].signature == ""


LINES = st.sampled_from(
    [*PAGE.splitlines(), "", "  indented words go here.", "中文句子。另一句。", "x" * 900, "word " * 200]
)


@given(st.lists(LINES, max_size=30).map("\n".join))
def test_a_statement_is_an_exact_piece_of_its_passage(text: str) -> None:
    for one in statements(text):
        assert text[one.start : one.start + len(one.text)] == one.text
        assert 0 < len(one.text) <= LONGEST


def test_a_long_statement_ends_after_a_word() -> None:
    (one,) = statements("many words " * 80)
    assert not one.whole
    assert set(one.text.split()) == {"many", "words"}


HOSTILE = [
    ("see [1] and [23]", "see (1) and (23)"),
    ("take x[0] of it", "take `x[0]` of it"),
    ("![pixel](http://e.vil/p.png) [click](javascript:alert(1)) me", "pixel click me"),
    ('<img src=x onerror="alert(1)"> text', '`<img src=x onerror="alert(1)">` text'),
    ("<script>alert(1)</script>", "`<script>`alert(1)`</script>`"),
    (":exc:`ValueError` and ``code`` here", "`ValueError` and `code` here"),
    ("an odd ` tick <b>", "an odd ` tick <b>`"),
    (r"\`<b> x[0]` <i a[1]>", "`<b> x[0]` `<i a[1]>`"),
    ("two\n# lines\n> here", "two # lines > here"),
]


@pytest.mark.parametrize(("given_text", "shown"), HOSTILE)
def test_what_is_shown_is_inert(given_text: str, shown: str) -> None:
    assert plain(given_text) == shown


MARKUP = [
    *"`<>[]()!/ab1 \n\\\"'*_",
    "![",
    "](",
    "<a",
    "[7]",
    "``",
    ":x:`",
    "<b>",
    "x[0]",
    "<img src=x>",
    "[a](b)",
    "<!--",
]


@given(st.lists(st.sampled_from(MARKUP), max_size=25).map("".join))
def test_a_markdown_renderer_finds_no_link_image_or_tag_in_it(text: str) -> None:
    html = MarkdownIt("commonmark", {"html": True}).render(f"**lead**: {plain(text)} [1]")
    assert set(re.findall(r"<(/?\w+|!)", html)) <= {"p", "/p", "strong", "/strong", "em", "/em", "code", "/code"}
    assert not re.search(r"(?<![\w\])])\[\d+\]", re.sub(r"`[^`]*`", "", plain(text)))
