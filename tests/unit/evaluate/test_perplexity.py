"""Bits per byte against a hand-made oracle, and drift that is zero only between equals."""

from pathlib import Path

import pytest
import torch

from mainspring.evaluate.perplexity import bits_per_byte, document_bits, fidelity, margin
from mainspring.models.tokenizer import Tokenizer, train_bpe
from mainspring.models.transformer import Decoder
from mainspring.models.weights import load_pretrained, save_pretrained
from mainspring.spec import DecoderConfig, SpecError

TEXTS = [
    "Join two paths and return the result. " * 3,
    "Close the file.",
    "Naïve café: 连接两个路径。 emoji \U0001f600.",
    "A longer document that does not fit the context of this little model. " * 12,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), seed=0)


def make_model(path: Path, *, seed: int, noise: float = 0.0) -> Path:
    torch.manual_seed(seed)
    tokenizer = train_bpe(TEXTS, vocab=300)
    model = Decoder(
        DecoderConfig(
            vocab=tokenizer.vocab,
            hidden=32,
            layers=2,
            heads=4,
            kv_heads=2,
            ffn=64,
            context=48,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # an untrained model is near uniform; make it say something
            parameter.add_(noise * torch.randn_like(parameter))
    save_pretrained(model, path, tokenizer=tokenizer)
    return path


def oracle_bits(folder: Path, text: str, context: int) -> float:
    """Every token scored alone, with exactly the context its window gives it."""
    tokenizer, model = Tokenizer.load(folder), load_pretrained(folder).eval()
    assert tokenizer.bos_id is not None
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    total, stride = 0.0, context // 2
    with torch.inference_mode():
        for target in range(1, len(ids)):
            if target <= context:
                start = 0
            else:
                window = (target - context - 1) // stride
                start = min(context + 1 + (window + 1) * stride, len(ids)) - context - 1
            logits = model(torch.tensor([ids[start:target]]))[0, -1]
            total -= float(logits.log_softmax(-1)[ids[target]]) / float(torch.tensor(2.0).log())
    return total


@pytest.mark.parametrize("context", [48, 16])
def test_every_token_is_scored_once_with_the_right_context(folder: Path, context: int) -> None:
    found = document_bits(folder, TEXTS, context=context)
    for at, text in enumerate(TEXTS):
        assert found.bits[at] == pytest.approx(oracle_bits(folder, text, context), rel=1e-4)
    assert found.tokens == sum(len(Tokenizer.load(folder).encode(text)) for text in TEXTS)


def test_the_denominator_is_the_bytes_of_the_text(folder: Path) -> None:
    found = document_bits(folder, TEXTS)
    assert found.bytes.tolist() == [len(text.encode()) for text in TEXTS]
    score = bits_per_byte(folder, TEXTS)
    assert score.value == pytest.approx(found.bits.sum() / found.bytes.sum())
    assert score.low is not None
    assert score.high is not None
    assert score.low <= score.value <= score.high


def test_a_document_costs_the_same_alone_and_in_company(folder: Path) -> None:
    together = document_bits(folder, TEXTS)
    for at, text in enumerate(TEXTS):
        assert document_bits(folder, [text]).bits[0] == pytest.approx(together.bits[at], rel=1e-5)


def test_a_model_does_not_drift_from_itself_and_a_noisy_copy_does(folder: Path, tmp_path: Path) -> None:
    same = {score.name: score.value for score in fidelity(folder, folder, TEXTS)[1]}
    assert same == {"kl_mean": 0.0, "kl_p99": 0.0, "top1_agreement": 1.0, "bits_per_byte_minus_original": 0.0}
    little = {s.name: s.value for s in fidelity(folder, make_model(tmp_path / "a", seed=0, noise=0.002), TEXTS)[1]}
    much = {s.name: s.value for s in fidelity(folder, make_model(tmp_path / "b", seed=0, noise=0.05), TEXTS)[1]}
    assert 0 < little["kl_mean"] < much["kl_mean"]
    assert much["top1_agreement"] < little["top1_agreement"] <= 1
    gap = bits_per_byte(tmp_path / "b", TEXTS).value - bits_per_byte(folder, TEXTS).value
    assert much["bits_per_byte_minus_original"] == pytest.approx(gap, abs=1e-5)


def test_the_bits_beside_the_drift_are_those_of_the_changed_model(folder: Path, tmp_path: Path) -> None:
    changed = make_model(tmp_path / "changed", seed=0, noise=0.05)
    beside, alone = fidelity(folder, changed, TEXTS)[0], document_bits(changed, TEXTS)
    assert beside.bits == pytest.approx(alone.bits, rel=1e-6)
    assert (beside.tokens, list(beside.bytes)) == (alone.tokens, list(alone.bytes))


def test_the_margin_over_a_baseline_is_paired_by_document(folder: Path) -> None:
    ours = document_bits(folder, TEXTS)
    steady = margin("m", ours, ours.bits + 0.25 * ours.bytes)
    assert steady.value == pytest.approx(-0.25)
    assert (steady.low, steady.high) == (pytest.approx(-0.25), pytest.approx(-0.25))


def test_damaged_weights_are_an_error_and_not_a_nan(folder: Path, tmp_path: Path) -> None:
    model = load_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    save_pretrained(model, tmp_path / "nan", tokenizer=Tokenizer.load(folder))
    with pytest.raises(SpecError, match="not numbers"):
        bits_per_byte(tmp_path / "nan", TEXTS)
    with pytest.raises(SpecError, match="not numbers"):
        fidelity(folder, tmp_path / "nan", TEXTS)


def test_nothing_to_score_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match="no held-out"):
        bits_per_byte(folder, [])
    with pytest.raises(SpecError, match="1 of 2"):
        bits_per_byte(folder, ["a", ""])


def test_models_with_different_tokenizers_have_no_token_by_token_drift(folder: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=0)
    train_bpe(["something else entirely, zzz " * 9], vocab=280).save(other)
    with pytest.raises(SpecError, match="tokenizer"):
        fidelity(folder, other, TEXTS)
