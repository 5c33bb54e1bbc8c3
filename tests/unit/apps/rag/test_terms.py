"""Terms: identifiers whole and in parts, scripts without spaces in pairs, and nothing but words."""

import re

from hypothesis import given
from hypothesis import strategies as st

from mainspring.apps.rag.terms import LONGEST, content_terms, phrases, stem, terms


def test_identifiers_count_whole_and_in_parts() -> None:
    assert terms("os.path.join(a)") == ["os.path.join", "os", "path", "join", "a"]
    assert terms("getItem read_csv HTTPServer utf8") == [
        *["getitem", "get", "item"],
        *["read_csv", "read", "csv"],
        *["httpserver", "http", "server"],
        *["utf8", "utf", "8"],
    ]
    assert terms("It ends. Here") == ["it", "ends", "here"]


def test_scripts_without_spaces_count_in_pairs() -> None:
    assert terms("当前时间 是now") == ["当前", "前时", "时间", "是", "now"]
    assert terms("日本語のテキスト")[:3] == ["日本", "本語", "語の"]


def test_accents_and_cyrillic_words_stay_whole() -> None:
    assert terms("Café naïve Привет") == ["café", "naïve", "привет"]


def test_stems_bring_forms_of_a_word_together() -> None:
    for forms in (
        ["join", "joins", "joined", "joining"],
        ["path", "paths"],
        ["copies", "copy"],
        ["file", "files", "filed", "filing"],
    ):
        assert len({stem(form) for form in forms}) == 1, forms
    assert stem("class") == "class"
    assert content_terms("How do I join the paths? Joining!") == ["join", "path"]


@given(st.text())
def test_terms_are_words_without_operators_and_of_bounded_length(text: str) -> None:
    for term in terms(text):
        assert 0 < len(term) <= LONGEST * 3
        assert not re.search(r"[\s\"'()*:^~+\-!&|\\/\[\]{}?]", term)


def test_a_stop_word_in_a_heading_is_found_by_its_neighbour() -> None:
    [name] = phrases(['The "with" statement'])
    assert name in phrases(["What does the with statement do?"])
    assert name not in phrases(["Is the statement with a colon?"])


def test_parts_of_an_identifier_are_no_phrase() -> None:
    assert phrases(["email.message_from_file", "readFrom"]) == []
    assert not set(phrases(["message_from_file"])) & set(phrases(["Read JSON from file"]))
