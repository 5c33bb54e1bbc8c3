"""Bits per byte of a model on documents it has not seen, and how far a changed model drifts from its original.

Each document is scored alone, after the token that begins a text; a document longer than the context is scored in
windows that overlap by half, so that every token is scored once and, but for the first window, with at least half
a context before it. The denominator is the document's own UTF-8 bytes, so tokenizers of any size compare; where
the text ends is not charged. Intervals resample documents, because tokens of one document are not independent.

Shapes: N documents, B windows in a batch, T positions, V vocabulary.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainspring.evaluate.compare import Interval, interval, paired
from mainspring.models.tokenizer import Tokenizer
from mainspring.models.weights import load_pretrained
from mainspring.spec import Progress, Score, SpecError, silent

if TYPE_CHECKING:
    from mainspring.models.transformer import Decoder

LOGITS = 1 << 23  # at most this many logits at once: 32 MiB in float32; 128 MiB took 1.7 times as long
LN2 = float(np.log(2.0))


@dataclass(frozen=True, slots=True)
class DocumentBits:
    """What each document costs a model, and its size."""

    bits: NDArray[np.float64]
    bytes: NDArray[np.float64]
    tokens: int

    @property
    def per_byte(self) -> Interval:
        """Bits per byte over all documents, with its interval."""
        return interval(self.bits, self.bytes)


@dataclass(frozen=True, slots=True)
class _Window:
    """Token ids of one stretch of a document; positions from `scored` on predict a token to be counted."""

    document: int
    ids: tuple[int, ...]
    scored: int


def bits_per_byte(
    model_folder: Path | str, texts: Sequence[str], *, context: int | None = None, progress: Progress = silent
) -> Score:
    """Bits per byte of `texts` under the model in `model_folder`."""
    found = document_bits(model_folder, texts, context=context, progress=progress)
    return score_of("bits_per_byte", found.per_byte, unit="bits/byte", samples=len(texts))


def document_bits(
    model_folder: Path | str, texts: Sequence[str], *, context: int | None = None, progress: Progress = silent
) -> DocumentBits:
    """Bits of each text under the model; texts must not be empty.

    Raises `SpecError` when the tokenizer loses part of a text, since what is lost would cost nothing.
    """
    tokenizer = Tokenizer.load(model_folder)
    model = load_pretrained(model_folder).eval()
    sizes = _sizes(texts)
    windows = _windows(model, tokenizer, texts, context)
    nats = np.zeros(len(texts))
    for batch, ids_BT, done in _batches(windows, model.config.vocab, progress):
        with torch.inference_mode():
            logits_BTV = model(ids_BT[:, :-1])
            losses_BT = torch.nn.functional.cross_entropy(
                logits_BTV.float().transpose(1, 2), ids_BT[:, 1:], reduction="none"
            )
        for window, losses_T in zip(batch, losses_BT.double().numpy(), strict=True):
            nats[window.document] += losses_T[window.scored : len(window.ids) - 1].sum()
        progress(done, "bits per byte")
    if not np.isfinite(nats).all():
        raise SpecError(f"{model_folder} gives probabilities that are not numbers", hint="the weights are damaged")
    return DocumentBits(nats / LN2, sizes, sum(len(window.ids) - 1 - window.scored for window in windows))


def fidelity(
    original: Path | str, changed: Path | str, texts: Sequence[str], *, progress: Progress = silent
) -> tuple[DocumentBits, tuple[Score, ...]]:
    """How far `changed` is from `original`, token by token on the same text, and the `document_bits` of `changed`.

    KL divergence in nats (mean, and the 99th percentile over tokens), how often both would choose the same token,
    and the paired difference in bits per byte. Both must share one vocabulary; each reads the text once.
    """
    tokenizer = Tokenizer.load(original)
    if not share_tokenizer(original, changed, texts):
        raise SpecError(f"{original} and {changed} do not share a tokenizer", hint="compare bits per byte instead")
    before, after = load_pretrained(original).eval(), load_pretrained(changed).eval()
    sizes = _sizes(texts)
    windows = _windows(before, tokenizer, texts, min(before.config.context, after.config.context))
    divergence, agreed, extra, nats, count = (np.zeros(len(texts)) for _ in range(5))
    tokens: list[NDArray[np.float64]] = []
    for batch, ids_BT, done in _batches(windows, before.config.vocab, progress):
        with torch.inference_mode():
            drifted = _drift(before(ids_BT[:, :-1]), after(ids_BT[:, :-1]), ids_BT[:, 1:])
        kl_BT, same_BT, worse_BT, loss_BT = drifted
        for row, window in enumerate(batch):
            counted = slice(window.scored, len(window.ids) - 1)
            tokens.append(kl_BT[row, counted].double().numpy())
            divergence[window.document] += tokens[-1].sum()
            agreed[window.document] += int(same_BT[row, counted].sum())
            extra[window.document] += float(worse_BT[row, counted].double().sum()) / LN2
            nats[window.document] += float(loss_BT[row, counted].double().sum())
            count[window.document] += len(tokens[-1])
        progress(done, "KL divergence from the original")
    worst = float(np.percentile(np.concatenate(tokens), 99))
    difference = interval(extra, sizes)
    if not np.isfinite([worst, difference.value, nats.sum()]).all():
        raise SpecError(f"{changed} gives probabilities that are not numbers", hint="the weights are damaged")
    total = int(count.sum())
    return DocumentBits(nats / LN2, sizes, total), (
        score_of("kl_mean", interval(divergence, count), unit="nats/token", samples=total),
        Score(name="kl_p99", value=worst, unit="nats/token", higher_is_better=False, samples=total),
        score_of("top1_agreement", interval(agreed, count), unit="share", samples=total, higher_is_better=True),
        score_of("bits_per_byte_minus_original", difference, unit="bits/byte", samples=len(texts)),
    )


def share_tokenizer(first: Path | str, second: Path | str, texts: Sequence[str]) -> bool:
    """Whether two model folders cut `texts` into the same tokens."""
    left, right = Tokenizer.load(first), Tokenizer.load(second)
    return left.vocab == right.vocab and left.encode_batch(list(texts)) == right.encode_batch(list(texts))


def margin(name: str, ours: DocumentBits, their_bits: Sequence[float] | NDArray) -> Score:
    """How many bits per byte `ours` needs above (or, negative, below) another model of the same documents."""
    found = paired(ours.bits, np.asarray(their_bits), ours.bytes)
    return score_of(name, found, unit="bits/byte", samples=len(ours.bits))


def score_of(name: str, found: Interval, *, unit: str, samples: int, higher_is_better: bool = False) -> Score:
    """An interval as a `Score`."""
    return Score(
        name=name,
        value=found.value,
        unit=unit,
        higher_is_better=higher_is_better,
        low=found.low,
        high=found.high,
        samples=samples,
    )


def _drift(before_BTV: Tensor, after_BTV: Tensor, next_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL(before || after), whether the first choices agree, the extra nats for the token that came, and all of them."""
    p_BTV, q_BTV = before_BTV.float().log_softmax(-1), after_BTV.float().log_softmax(-1)
    kl_BT = (p_BTV.exp() * (p_BTV - q_BTV)).sum(-1).clamp_min(0)
    loss_BT = -q_BTV.gather(-1, next_BT.unsqueeze(-1)).squeeze(-1)
    worse_BT = p_BTV.gather(-1, next_BT.unsqueeze(-1)).squeeze(-1) + loss_BT
    return kl_BT, p_BTV.argmax(-1) == q_BTV.argmax(-1), worse_BT, loss_BT


def _sizes(texts: Sequence[str]) -> NDArray[np.float64]:
    if not texts:
        raise SpecError("there are no held-out documents to score")
    sizes = np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.float64)
    if not (sizes > 0).all():
        raise SpecError(f"{int((sizes == 0).sum())} of {len(texts)} held-out documents are empty")
    return sizes


def _windows(model: "Decoder", tokenizer: Tokenizer, texts: Sequence[str], context: int | None) -> list[_Window]:
    """Every document as windows of at most `context` predictions, longest first so that batches are even."""
    begin = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if begin is None:
        raise SpecError("the tokenizer names no token that begins or ends a text", hint="set bos_token or eos_token")
    length = min(context or model.config.context, model.config.context)
    windows: list[_Window] = []
    for document, (text, encoded) in enumerate(zip(texts, tokenizer.encode_batch(list(texts)), strict=True)):
        back = tokenizer.decode(encoded)
        if unicodedata.normalize("NFC", back).strip() != unicodedata.normalize("NFC", text).strip():
            raise SpecError(
                f"the tokenizer does not give held-out document {document} back: {len(text)} characters in, "
                f"{len(back)} out",
                hint="bits per byte needs a tokenizer that loses nothing",
            )
        windows += _cut(document, (begin, *encoded), length)
    return sorted(windows, key=lambda window: -len(window.ids))


def _cut(document: int, ids: tuple[int, ...], length: int) -> Iterator[_Window]:
    """Windows that predict every token after the first exactly once."""
    yield _Window(document, ids[: length + 1], 0)
    stride = max(1, length // 2)
    for end in range(length + 1, len(ids), stride):
        stop = min(end + stride, len(ids))
        start = stop - length - 1
        yield _Window(document, ids[start:stop], end - 1 - start)


def _batches(
    windows: Sequence[_Window], vocab: int, progress: Progress
) -> Iterator[tuple[Sequence[_Window], Tensor, float]]:
    """Windows of similar length, padded on the right (which a causal model cannot see from the left)."""
    progress(0.0, f"scoring {len(windows)} windows")
    at = 0
    while at < len(windows):
        longest = len(windows[at].ids)
        batch = windows[at : at + max(1, LOGITS // (vocab * longest))]
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, window in enumerate(batch):
            ids_BT[row, : len(window.ids)] = torch.tensor(window.ids)
        at += len(batch)
        yield batch, ids_BT, at / len(windows)
