"""LSA on real documentation, and a real ONNX encoder built here, through the sentence-transformers layout."""

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import tokenizers
from onnx import TensorProto, helper, numpy_helper

from mainspring.models.embedder import Embedder, fit_lsa, load_embedder, split_terms
from mainspring.models.onnx_embedder import OnnxEmbedder, pool, read_pooling
from mainspring.spec import NotFound, SpecError


def documentation() -> list[str]:
    """Docstrings of the standard library's path, json, collections and string tools."""
    import collections
    import json as json_module
    import os.path
    import pathlib
    import statistics
    import string
    import textwrap

    modules = (collections, json_module, os.path, pathlib, statistics, string, textwrap)
    members = [value for module in modules for _, value in inspect.getmembers(module)]
    return sorted({text for value in members if (text := inspect.getdoc(value)) and len(text) > 60})


TEXTS = documentation()


def test_lsa_finds_the_document_a_paraphrase_is_about() -> None:
    texts = [*TEXTS, "Fold long paragraphs so that every line fits a given column width."]
    vectors = fit_lsa(texts, dim=64).encode(texts)
    query = fit_lsa(texts, dim=64).encode(["wrap a paragraph to lines of a width"])
    best = [texts[index] for index in np.argsort(-(vectors @ query[0]))[:5]]
    assert sum("paragraph" in text for text in best) >= 3


def test_lsa_is_deterministic_of_length_one_and_survives_the_disk(tmp_path: Path) -> None:
    fitted = fit_lsa(TEXTS, dim=48)
    vectors = fitted.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), fitted.dim) == (len(TEXTS), 48)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(fit_lsa(iter(TEXTS), dim=48).encode(TEXTS), vectors)
    fitted.save(tmp_path / "a")
    fit_lsa(TEXTS, dim=48).save(tmp_path / "b")
    assert (tmp_path / "a/lsa.npz").read_bytes() == (tmp_path / "b/lsa.npz").read_bytes()
    again = load_embedder(tmp_path / "a")
    assert again.name == "lsa-48"
    np.testing.assert_array_equal(again.encode(TEXTS), vectors)


def test_lsa_keeps_the_leading_directions_of_the_exact_decomposition() -> None:
    fitted = fit_lsa(TEXTS, dim=24)
    full = fit_lsa(TEXTS, dim=10_000)
    assert full.dim <= len(TEXTS)
    cosines = (fitted._directions * full._directions[:, :24]).sum(0)
    assert cosines.min() > 0.97


def test_a_text_of_unknown_words_is_a_vector_of_zeros() -> None:
    vectors = fit_lsa(TEXTS, dim=16).encode(["zzzzqqqq", ""])
    assert not vectors.any()


def test_identifiers_count_whole_and_in_parts() -> None:
    assert split_terms("os.path_join(Path)") == {"os": 1, "path_join": 1, "path": 2, "join": 1}


def test_no_words_and_torn_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no words"):
        fit_lsa(["...", ""])
    fit_lsa(TEXTS, dim=8).save(tmp_path)
    (tmp_path / "lsa.npz").write_bytes((tmp_path / "lsa.npz").read_bytes()[:100])
    with pytest.raises(SpecError, match=r"lsa\.npz"):
        load_embedder(tmp_path)


WORDS = sorted({word for text in TEXTS for word in split_terms(text)})[:400]
HIDDEN = 32


def make_encoder(folder: Path, *, pooling: dict[str, bool]) -> None:
    """A one-layer encoder: embeddings, then a residual GELU-free feed-forward with two matrix products."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(vocab)}, "[UNK]"))
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    for part in ("onnx", "1_Pooling"):
        (folder / part).mkdir(parents=True)
    inner.save(str(folder / "tokenizer.json"))
    random = np.random.default_rng(0)
    weights = {
        "table": random.normal(size=(len(vocab), HIDDEN)),
        "up": random.normal(size=(HIDDEN, 4 * HIDDEN)) / HIDDEN**0.5,
        "down": random.normal(size=(4 * HIDDEN, HIDDEN)) / HIDDEN**0.5 / 2,
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "up"], ["h"]),
        helper.make_node("Tanh", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "down"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["last_hidden_state"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", HIDDEN])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "onnx" / "model.onnx")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": HIDDEN} | pooling))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24, "do_lower_case": false}')
    modules = ("transformers.Transformer", "models.Pooling", "models.Normalize")
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.{m}"} for m in modules]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAINSPRING_HOME", str(tmp_path / "home"))
    make_encoder(tmp_path / "tiny", pooling={"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    return tmp_path / "tiny"


def test_int8_is_the_default_close_to_float_and_made_once(folder: Path, tmp_path: Path) -> None:
    rounded = load_embedder(folder)
    full = OnnxEmbedder.open(folder, precision="fp32")
    (cached,) = (tmp_path / "home/cache/onnx").glob("*.int8.onnx")
    assert cached.stat().st_size < 0.4 * (folder / "onnx/model.onnx").stat().st_size
    assert rounded.dim == full.dim == HIDDEN
    a, b = rounded.encode(TEXTS[:40]), full.encode(TEXTS[:40])
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, rtol=1e-5)
    assert (a * b).sum(1).min() > 0.99
    made = cached.stat().st_mtime_ns
    load_embedder(folder)
    assert cached.stat().st_mtime_ns == made


def test_a_vector_does_not_depend_on_padding_or_order(folder: Path) -> None:
    embedder = OnnxEmbedder.open(folder, precision="fp32")
    together = embedder.encode(TEXTS[:50])
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS[:50]])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert embedder.encode([]).shape == (0, HIDDEN)


def test_a_saved_embedder_stands_alone(folder: Path, tmp_path: Path) -> None:
    first: Embedder = load_embedder(folder)
    expected = first.encode(TEXTS[:5])
    first.save(tmp_path / "copy")
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "home")
    np.testing.assert_array_equal(load_embedder(tmp_path / "copy").encode(TEXTS[:5]), expected)
    assert not (tmp_path / "home").exists()


def test_tokens_are_counted_as_run_and_decoded_to_what_they_stand_for(folder: Path) -> None:
    embedder = load_embedder(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = " ".join(WORDS[3:6])
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    np.testing.assert_array_equal(embedder.encode([embedder.decode(ids)]), embedder.encode([text]))
    lengths = [len(tokenizer.encode(each).ids) for each in (text, "a")]
    assert embedder.count([text, "a"]) == sum(lengths)
    with pytest.raises(SpecError, match="token id 100000 is outside the vocabulary"):
        embedder.decode([100_000])
    assert not embedder.nested


def test_the_leading_dimensions_of_lsa_are_an_embedding_of_their_own() -> None:
    wide, narrow = fit_lsa(TEXTS, dim=32), fit_lsa(TEXTS, dim=8)
    cut = wide.encode(TEXTS)[:, :8]
    cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    assert (cut * narrow.encode(TEXTS)).sum(1).mean() > 0.97
    assert wide.nested
    assert wide.count(["os.path_join (a)", ""]) == 3
    with pytest.raises(SpecError, match="has no token ids"):
        wide.decode([1])


def test_pooling_by_hand() -> None:
    hidden = np.array([[[1, 5], [3, 1], [9, 9]]], dtype=np.float32)
    mask = np.array([[1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[2, 3]]
    assert pool(hidden, mask, "cls").tolist() == [[1, 5]]
    assert pool(hidden, mask, "max").tolist() == [[3, 5]]
    assert pool(hidden, mask, "lasttoken").tolist() == [[3, 1]]
    assert pool(hidden, mask[:, ::-1].copy(), "lasttoken").tolist() == [[9, 9]]


def test_pooling_is_read_in_the_old_and_the_new_spelling(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    assert read_pooling(folder) == "mean"
    path.write_text('{"pooling_mode": "lasttoken"}')
    assert read_pooling(folder) == "lasttoken"
    path.write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(SpecError, match="pooling_mode_weightedmean_tokens is not supported"):
        read_pooling(folder)
    path.unlink()
    assert read_pooling(folder) == "mean"
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(SpecError, match="Dense is not supported"):
        read_pooling(folder)


def test_what_a_folder_lacks_is_said(folder: Path) -> None:
    (folder / "onnx/model.onnx").write_bytes(b"not a graph")
    with pytest.raises(SpecError, match=r"model\.onnx"):
        load_embedder(folder)
    (folder / "onnx/model.onnx").unlink()
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(NotFound, match=r"weights in model\.safetensors but no onnx/model\.onnx") as caught:
        load_embedder(folder)
    assert "export onnx" in caught.value.hint
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"has no onnx/model\.onnx"):
        load_embedder(folder)
