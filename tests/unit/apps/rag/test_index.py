"""Hybrid retrieval on a real LanceDB table: any text is a question, ties are settled, little is recomputed."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mainspring.apps.rag import index as index_module
from mainspring.apps.rag.fusion import LEAST_QUESTIONS, WEIGHTS
from mainspring.apps.rag.index import Index, build_index
from mainspring.data.snapshot import texts
from mainspring.spec import Artifact, NotFound, SpecError
from mainspring.store import Store

Pages = dict[str, str]
Publish = Callable[..., Artifact]


def sources(index: Index, question: str, k: int = 3, **mode: str) -> list[str]:
    return [hit.chunk.source for hit in index.search(question, k, **mode)]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mode", ["hybrid", "text", "vector"])
@pytest.mark.parametrize(
    ("question", "source"),
    [
        ("Which function joins two paths?", "os.path.join"),
        ("How do I read comma separated files?", "csv.reader"),
        ("square roots", "math.sqrt"),
        ("copying directories", "shutil.copytree"),
        ("怎么得到当前时间?", "时间"),
        ("目录名称怎么合并", "路径"),
    ],
)
def test_a_natural_question_finds_its_page_in_every_mode(index: Index, question: str, source: str, mode: str) -> None:
    assert sources(index, question, mode=mode)[0] == source


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.sampled_from("ab\"'()*:^~+-!&|\\/[]{}? 路径\x00\n.AND OR"), max_size=60))
def test_no_punctuation_or_operator_upsets_the_search(index: Index, question: str) -> None:
    first = index.search(question, 5)
    assert first == index.search(question, 5), "the same question gives the same list"
    assert len(first) <= 5


@pytest.mark.parametrize("question", ["", " \n", "???", "the of and", "x" * 1_000_000, "zyzzyva " * 100_000])
def test_a_question_without_a_known_word_finds_nothing_and_a_huge_one_is_quick(index: Index, question: str) -> None:
    assert index.search(question) == []


def test_every_hit_is_a_passage_of_its_document(index: Index, library: Store) -> None:
    by_id = {document.id: document for document in texts(library, index.manifest.snapshot)}
    for hit in index.search("path function string directory", 9):
        chunk = hit.chunk
        assert by_id[chunk.document].text[chunk.start : chunk.end] == chunk.text
        assert chunk.source in chunk.path[0]


def test_the_weight_is_chosen_on_the_corpus_itself_and_recorded(store: Store, publish_pages: Publish) -> None:
    pages = {
        f"tool{n}": f"# tool{n}\n\n    tool{n}(x)\n\nReturn the {word} number{n} of a machine with several engines."
        for n, word in enumerate(("weight", "colour", "height", "temperature", "pressure", "speed") * 8)
    }
    snapshot = publish_pages(store, pages).ref
    built = build_index(store, snapshot, name="tools")
    manifest = Index.open(store, built.ref).manifest
    assert manifest.text_weight in WEIGHTS
    assert (manifest.tuned_on, json.loads(built.meta_json)["questions"]) == (snapshot, manifest.questions)
    assert LEAST_QUESTIONS <= manifest.questions < len(pages), "held-out documents give no questions to choose by"
    pages["tool7"] += " It is painted green."
    again = Index.open(store, build_index(store, publish_pages(store, pages).ref, name="tools").ref).manifest
    assert again.snapshot != snapshot
    assert (again.text_weight, again.tuned_on) == (manifest.text_weight, snapshot), "kept while little changed"


def test_a_candidate_of_either_search_has_all_its_scores(index: Index) -> None:
    vectors = index.vectors()
    question = "Which function joins two paths?"
    found = index.candidates(question)
    by_text = {hit.chunk.id: hit.score for hit in index.search(question, 50, mode="text")}
    by_vector = {hit.chunk.id: hit.score for hit in index.search(question, 50, mode="vector")}
    assert {one.chunk.id for one in found} == by_text.keys() | by_vector.keys()
    for one in found:
        assert one.text == by_text.get(one.chunk.id, 0.0)
        assert one.cosine == pytest.approx(float(index.encode([question])[0] @ vectors[one.chunk.id]), abs=1e-5)
        assert 0 <= one.coverage <= 1


def test_the_index_is_an_artifact_that_descends_from_its_snapshot(index: Index, library: Store, pages: Pages) -> None:
    above = library.lineage(index.ref, direction="up")
    assert index.manifest.snapshot in {artifact.ref for artifact in above.artifacts}
    assert index.manifest.documents == len(pages)


def test_searching_leaves_the_published_folder_as_it_was(
    index: Index, files: Callable[[Path], dict[str, bytes]]
) -> None:
    before = files(index.folder)
    Index(index.folder).search("join paths")
    assert files(index.folder) == before


def test_a_rebuild_embeds_only_what_changed(store: Store, publish_pages: Publish) -> None:
    pages = {f"page{n}": f"# page{n}\n\nThis page explains topic number{n} of the long handbook." for n in range(40)}
    first = build_index(store, publish_pages(store, pages).ref, name="book")
    assert json.loads(first.meta_json)["embedded"] == 40
    pages["page7"] = "# page7\n\nThis page now explains gardening with tomatoes."
    del pages["page9"]
    second = build_index(store, publish_pages(store, pages).ref, name="book")
    assert json.loads(second.meta_json)["embedded"] == 1
    index = Index.open(store, second.ref)
    assert sources(index, "gardening tomatoes", 1) == ["page7"]
    assert "page9" not in sources(index, "topic number9", 40)
    before, after = Index.open(store, first.ref).vectors(), index.vectors()
    assert all((before[key] == after[key]).all() for key in before.keys() & after.keys())
    assert len(before.keys() & after.keys()) == 38


def test_when_much_changed_the_embedder_is_fitted_again(store: Store, publish_pages: Publish, pages: Pages) -> None:
    build_index(store, publish_pages(store, pages).ref, name="book")
    other = {f"p{n}": f"# p{n}\n\nAstronomy of planet{n} and its moons." for n in range(9)}
    again = build_index(store, publish_pages(store, other).ref, name="book")
    assert json.loads(again.meta_json)["embedded"] == 9
    assert sources(Index.open(store, again.ref), "moons of planet3", 1, mode="vector") == ["p3"]


def test_a_large_corpus_gets_an_approximate_index_that_still_finds(
    store: Store, publish_pages: Publish, monkeypatch
) -> None:
    monkeypatch.setattr(index_module, "APPROXIMATE_FROM", 300)
    draw = random.Random(0)
    words = [f"word{n}" for n in range(200)]
    pages = {f"p{n}": f"# p{n}\n\nAbout {' '.join(draw.sample(words, 8))}." for n in range(400)}
    built = build_index(store, publish_pages(store, pages).ref, name="big")
    index = Index.open(store, built.ref)
    asked = [f"p{n}" for n in range(0, 400, 10)]
    found = [source in sources(index, pages[source].split("About ")[1], 5, mode="vector") for source in asked]
    assert sum(found) >= 0.9 * len(found)


def test_what_is_no_index_is_refused(store: Store, tmp_path: Path, publish_pages: Publish, pages: Pages) -> None:
    with pytest.raises(NotFound):
        Index.open(store, "index:nothing")
    with pytest.raises(SpecError, match=r"index\.json"):
        Index(tmp_path)
    with pytest.raises(SpecError, match="folder"):
        build_index(store, publish_pages(store, pages).ref, name="x", embedder="./no-such-model")
