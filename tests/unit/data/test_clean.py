"""Cleaning: each rule fires on what it is for, and the counts add up whatever comes in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.data.clean import FILTERS, clean
from mainspring.data.documents import document_id, make_document, to_table
from mainspring.spec import SpecError

GOOD = (
    "The quick brown fox jumps over the lazy dog while the sun sets behind the hills.\n\n"
    "Nobody in the village remembers when the old mill stopped turning its stones.\n"
)
BAD = {
    "few_letters": "# 12 ab\n",
    "damaged": "Some w\ufffdrds th\ufffdt were d\ufffdc\ufffdd\ufffdd wr\ufffdng\n",
    "long_line": "word " * 5000,
    "symbols": "let's {}[]()<>;:;:;:{}{}{}()()()!@#$%^&*()_+==--||\\\\//??..,,::;;''{}{} draw a little\n" * 2,
    "repeated_lines": "a first line that says something new\n" + "buy our great new product today\n" * 5,
    "repeated_paragraphs": ("one part of\nthe paragraph that\nnever changes here\n\n" * 4),
    "top_ngram": " ".join(f"{word} click here" for word in (f"w{i}" for i in range(60))),
    "duplicate_ngrams": " ".join([*(f"word{i}" for i in range(40)), "and"] * 3),
    "deprecated": "Deprecated since version 3.10: use something else instead of this.\n",
    "private": "A document about something that is nobody's business but its own.\n",
}


def table_of(*texts: str, source: str = "doc"):
    return to_table(make_document(f"{source}{i}", text, title="t", kind="text") for i, text in enumerate(texts))


@pytest.mark.parametrize("rule", [rule.name for rule in FILTERS])
def test_each_rule_drops_what_it_is_for_and_says_what_it_saw(rule: str) -> None:
    rules = {"deprecated": 200, "private": 1} if rule in ("deprecated", "private") else {}
    alone = {other.name: None for other in FILTERS if other.name != rule} | {
        name: limit for name, limit in rules.items() if name == rule
    }
    source = "pkg._hidden.name" if rule == "private" else "doc"
    bad = table_of(BAD[rule], source=source)
    kept, counts = clean(bad, rules=alone)
    count = next(count for count in counts if count.rule == rule)
    assert kept.num_rows == 0
    assert count.dropped == 1
    assert count.examples[0].startswith(f"{source}0: ")
    assert clean(table_of(GOOD), rules=rules)[0].num_rows == 1
    assert clean(bad, rules=alone | {rule: None})[0].num_rows == 1


def test_a_dropped_document_is_charged_to_one_rule_only() -> None:
    everything = "x\ufffd\ufffd\n" * 10
    _, counts = clean(table_of(everything))
    assert sum(count.dropped for count in counts) == 1


def test_repairs_change_form_and_not_content() -> None:
    text = (
        "caf\u0065\u0301 \u200bau lait  \n\n\n\n\nSkip to main content\nEdit this page\n"
        "How to sign in:\n\n    log in\n\n```\nNext\n```\n\u00a9 2024 Some Company. All rights reserved.\n"
    )
    kept, counts = clean(table_of(text), rules={"few_letters": 1})
    assert kept["text"].to_pylist() == ["caf\u00e9 au lait\n\nHow to sign in:\n\n    log in\n\n```\nNext\n```\n"]
    assert kept["id"].to_pylist() == [document_id("doc0", kept["text"][0].as_py())]
    changed = {count.rule for count in counts if count.changed}
    assert changed == {"unicode_nfc", "control_characters", "boilerplate_lines", "whitespace"}


def test_a_text_in_chinese_is_judged_like_any_other() -> None:
    text = (
        "\u8fd9\u4e2a\u51fd\u6570\u8fd4\u56de\u4e24\u4e2a\u8def\u5f84\u8fde\u63a5\u4e4b\u540e\u7684\u7ed3\u679c\u3002\n"
    )
    assert clean(table_of(text))[0].num_rows == 1


def test_a_misspelt_rule_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError) as caught:
        clean(table_of(GOOD), rules={"long_lines": 10})
    assert caught.value.hint == "did you mean 'long_line'?"
    with pytest.raises(SpecError, match="needs a number or None"):
        clean(table_of(GOOD), rules={"long_line": "10"})  # pyright: ignore[reportArgumentType]


PIECES = st.sampled_from(
    [GOOD, *BAD.values(), "\n", " ", "Next\n", "```\n", "\u200b", "\u0301", "e", "    sign in", "\t", "# a\n", "\ufffd"]
)
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.lists(PIECES, max_size=6).map("".join)
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_read_equals_kept_plus_dropped_and_cleaning_twice_changes_nothing(texts: list[str]) -> None:
    kept, counts = clean(table_of(*texts))
    assert kept.num_rows + sum(count.dropped for count in counts) == len(texts)
    again, counts = clean(kept)
    assert again.to_pylist() == kept.to_pylist()
    assert not any(count.dropped or count.changed for count in counts)
