"""Markdown of strangers: what it means is drawn, and nothing in it is obeyed."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.console.markdown import inline, markdown

OURS = {
    "p": set(),
    "b": set(),
    "em": set(),
    "code": set(),
    "pre": {"class"},
    "ul": set(),
    "ol": set(),
    "li": set(),
    "h3": set(),
    "blockquote": set(),
    "sup": set(),
    "a": {"href", "rel", "target"},
}
PIECES = ("**", "*", "`", "``", "```\n", "~~~", "[1]", "[a](", "https://x.y/", "javascript:alert(1)", ")", "\n", "\n\n")
PIECES += ("# ", "- ", "> ", "1. ", "<script>", "<img src=x onerror=alert(1)>", '"', "'", "&lt;", "a b", "_x_", " ")

UNSAID = re.compile(r"\]\(http|^[ \t]*(`{3,}|~{3,})\w", re.MULTILINE)
"""The address of a link and the language of a block of code are not among the words that are shown."""


class Seen(HTMLParser):
    """The tags and the text that a browser would make of markup."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.text, self.open = "", list[str]()
        self.links: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {name for name, _ in attrs} <= OURS[tag]
        self.links += [value or "" for name, value in attrs if name == "href"]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=200))
def test_nothing_that_a_stranger_writes_becomes_markup_or_is_lost(text: str) -> None:
    for draw in (markdown, inline):
        seen = Seen(draw(text, cite=lambda marker: f"#passage-{marker}"))
        assert not seen.open
        assert all(link.startswith(("https://", "http://", "#passage-")) for link in seen.links)
        if not UNSAID.search(text):
            assert [char for char in text if char.isalpha()] == [char for char in seen.text if char.isalpha()]


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("**Counter**: a dict [1]", '<p><b>Counter</b>: a dict <sup><a href="#1">1</a></sup></p>'),
        ("``fp`` (a ``.read()``-file)", "<p><code>fp</code> (a <code>.read()</code>-file)</p>"),
        ("`f(*a, **kw)`: gives *one*", "<p><code>f(*a, **kw)</code>: gives <em>one</em></p>"),
        ("f(*args, **kw) and 2*3*4", "<p>f(*args, **kw) and 2*3*4</p>"),
        ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
        ("# Title\n- one\n- two `x`", "<h3>Title</h3><ul><li>one</li><li>two <code>x</code></li></ul>"),
        ("1. one\n2. two", "<ol><li>one</li><li>two</li></ol>"),
        ("> said\n> twice", "<blockquote>said\ntwice</blockquote>"),
        ("see\n```py\n**x** <b>\n```\nend", '<p>see</p><pre class="code"><code>**x** &lt;b&gt;</code></pre><p>end</p>'),
        ("```\nopen", '<pre class="code"><code>open</code></pre>'),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
        ("**bold `a*b`** __init__", "<p>**bold <code>a*b</code>** __init__</p>"),
    ],
)
def test_what_answers_are_written_in_is_drawn(text: str, drawn: str) -> None:
    assert markdown(text, cite=lambda marker: f"#{marker}") == drawn


def test_a_link_opens_elsewhere_and_tells_nobody_where_it_was() -> None:
    drawn = inline("[docs](https://docs.python.org/3/?a=1&b=2)")
    assert 'href="https://docs.python.org/3/?a=1&amp;b=2" rel="noopener noreferrer" target="_blank"' in drawn


def test_without_passages_a_number_in_brackets_stays_as_it_is() -> None:
    assert inline("rows[0] [1]") == "rows[0] [1]"
