"""The evaluation of a real little model on a real snapshot: baselines on the same documents, a gated report."""

import json
import random
from pathlib import Path

import pytest
import torch

from mainspring.data.documents import make_document, to_table
from mainspring.data.pack import pack, train_tokenizer
from mainspring.data.snapshot import publish
from mainspring.evaluate.gate import FIDELITY, GENERATOR, criteria_for, decide
from mainspring.evaluate.report import read_report
from mainspring.evaluate.stage import evaluate_model, report_of, snapshot_of
from mainspring.models.tokenizer import Tokenizer
from mainspring.models.transformer import Decoder
from mainspring.models.weights import save_pretrained
from mainspring.spec import Artifact, CurationReport, DecoderConfig, NotFound, SpecError
from mainspring.store import Store

WORDS = ["path", "file", "directory", "returns", "joined", "with", "another", "value", "string", "the", "a", "of"]


@pytest.fixture
def tokens(store: Store) -> Artifact:
    draw = random.Random(0)
    documents = [
        make_document(f"d{n}", " ".join(draw.choice(WORDS) for _ in range(60)) + ".", title=f"d{n}", kind="text")
        for n in range(120)
    ]
    report = CurationReport(read=120, kept=120, read_bytes=1, kept_bytes=1, rules=())
    snapshot = publish(store, "words", to_table(documents), report)
    tokenizer = train_tokenizer(store, snapshot.ref, vocab=300, name="words")
    return pack(store, snapshot.ref, tokenizer.ref, name="words")


def publish_model(store: Store, tokens: Artifact, folder: Path, *, noise: float = 0.0, name: str = "m") -> Artifact:
    tokenizer = Tokenizer.load(store.fetch("tokenizer:words"))
    torch.manual_seed(0)
    shape = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 32, "context": 64}
    model = Decoder(DecoderConfig(vocab=tokenizer.vocab, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    save_pretrained(model, folder, tokenizer=tokenizer)
    return store.publish("model", name, folder, inputs=(tokens.ref,))


def test_an_untrained_model_is_measured_against_the_baselines_and_fails_its_gate(
    store: Store, tokens: Artifact, tmp_path: Path
) -> None:
    model = publish_model(store, tokens, tmp_path / "m")
    artifact = evaluate_model(store, model.ref)
    report = read_report(store, artifact)
    values = {score.name: score.value for score in report.scores}
    assert values["bits_per_byte_minus_ngram"] == pytest.approx(
        values["bits_per_byte"] - values["ngram_bits_per_byte"], abs=1e-9
    )
    assert 0 < values["ngram_bits_per_byte"] < values["xz_bits_per_byte"] < values["xz_alone_bits_per_byte"] < 8
    assert not decide(report, GENERATOR).passed
    assert json.loads(artifact.meta_json)["gate"] == "fail"
    assert "Gate: fail" in (store.fetch(artifact) / "report.html").read_text()
    assert report.snapshot == snapshot_of(store, tokens.ref)
    assert "held-out documents" in report.notes[0]
    assert report_of(store, model.ref) == report
    assert model.ref in {found.ref for found in store.lineage(artifact.ref, direction="up").artifacts}


def test_a_changed_model_is_held_against_its_original(store: Store, tokens: Artifact, tmp_path: Path) -> None:
    original = publish_model(store, tokens, tmp_path / "a")
    damaged = publish_model(store, tokens, tmp_path / "b", noise=0.3, name="damaged")
    same = read_report(store, evaluate_model(store, original.ref, compare_to=original.ref))
    assert decide(same, FIDELITY).passed
    worse = read_report(store, evaluate_model(store, damaged.ref, data=tokens.ref, compare_to=original.ref))
    assert not decide(worse, FIDELITY).passed
    assert len(decide(worse, criteria_for(worse)).reasons) == len(GENERATOR) + len(FIDELITY)


def test_what_cannot_be_evaluated_is_said(store: Store, tokens: Artifact, tmp_path: Path) -> None:
    orphan = publish_model(store, tokens, tmp_path / "m")
    with pytest.raises(SpecError, match="no documents"):
        evaluate_model(store, orphan.ref, data="tokenizer:words")
    (tmp_path / "alone").write_text("x")
    lonely = store.publish("model", "lonely", tmp_path / "alone")
    with pytest.raises(NotFound, match="no token set"):
        evaluate_model(store, lonely.ref)


def test_a_collection_of_one_document_says_what_became_of_the_others(
    store: Store, tokens: Artifact, tmp_path: Path
) -> None:
    model = publish_model(store, tokens, tmp_path / "m")
    document = make_document(
        "only.md", "One page about one thing, long enough to be kept.\n", title="Only", kind="text"
    )
    report = CurationReport(read=3, kept=1, read_bytes=9, kept_bytes=9, rules=())
    alone = publish(store, "alone", to_table([document]), report)
    with pytest.raises(SpecError, match="1 of 3 documents were kept"):
        evaluate_model(store, model.ref, data=alone.ref)
