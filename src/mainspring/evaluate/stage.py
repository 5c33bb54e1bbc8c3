"""The evaluation of a language model as a stage: one published report per model and held-out set.

Wall time is bounded by reading at most `HELD_OUT_BYTES` of held-out text (the report says how much was read) and
`baselines.TRAIN_BYTES` of training text for the baselines.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainspring.data import snapshot as snapshots
from mainspring.data.pack import held_out_documents, held_out_sources
from mainspring.data.snapshot import sources, texts
from mainspring.evaluate.baselines import EDITION, ORDER, TRAIN_BYTES, NGram, training_bytes, xz_bits_per_byte
from mainspring.evaluate.gate import criteria_for, decide
from mainspring.evaluate.perplexity import (
    DocumentBits,
    document_bits,
    fidelity,
    margin,
    score_of,
    share_tokenizer,
)
from mainspring.evaluate.report import Plot, publish_report, read_report, with_baseline
from mainspring.models.config import check_readable
from mainspring.spec import Artifact, NotFound, Progress, Report, Score, SpecError, TokenSet, silent
from mainspring.store import Store
from mainspring.store.parse import read_json

HELD_OUT_BYTES = 128 << 10


def evaluate_model(
    store: Store,
    model_ref: str,
    *,
    data: str = "",
    compare_to: str = "",
    run: str = "",
    progress: Progress = silent,
) -> Artifact:
    """Measure `model_ref` on held-out documents and publish the report.

    `data` is a dataset or a packed token set; empty takes what the model was trained on, from its lineage.
    `compare_to` names another model, usually the original of a compressed one.
    """
    model = _model(store, model_ref)
    original = _model(store, compare_to) if compare_to else None
    snapshot = snapshot_of(store, data or _training_data(store, model.ref))
    documents, of = _held_out(store, snapshot)
    folder = _folder(store, model)
    other = _folder(store, original) if original else None
    bits, against = _measured(folder, other, documents, _part(progress, 0.0, 0.8))
    progress(0.8, "xz and n-gram on the same documents")
    raw = [text.encode("utf-8", "replace") for text in documents]
    baselines = _baselines(store, snapshot, raw)
    ngram = np.array(baselines["ngram"])
    mean = float(ngram.sum() / bits.bytes.sum())
    scores = [
        with_baseline(
            score_of("bits_per_byte", bits.per_byte, unit="bits/byte", samples=len(documents)),
            mean,
            f"{ORDER}-gram",
        ),
        margin("bits_per_byte_minus_ngram", bits, ngram),
        _plain("ngram_bits_per_byte", mean, len(documents)),
        _plain("xz_bits_per_byte", baselines["xz"], len(documents)),
        _plain("xz_alone_bits_per_byte", baselines["xz_alone"], len(documents)),
    ]
    notes = [
        f"{len(documents)} of {of} held-out documents, {int(bits.bytes.sum())} bytes, {bits.tokens} tokens, each "
        "document scored alone.",
        f"Baselines saw {baselines['given_bytes']} bytes of the training documents; xz is charged for the held-out "
        "text alone.",
    ]
    if original:
        scores += against
        notes.append(f"The original is {original.ref}.")
    report = Report(subject=model.ref, snapshot=snapshot, scores=tuple(scores), notes=tuple(notes))
    decision = decide(report, criteria_for(report))
    artifact = publish_report(store, report, plots=(_plot(bits, ngram),), decision=decision, run=run)
    progress(1.0, f"{scores[0].value:.3f} bits per byte, n-gram {mean:.3f}: gate {decision.verdict}")
    return artifact


def _model(store: Store, ref: str) -> Artifact:
    artifact = store.resolve(ref)
    if artifact.kind != "model":
        raise SpecError(f"{artifact.ref} is of kind {artifact.kind}, only a model can be evaluated")
    return artifact


def _folder(store: Store, model: Artifact) -> Path:
    folder = store.fetch(model)
    check_readable(folder, model.ref)
    return folder


def report_of(store: Store, model_ref: str) -> Report | None:
    """The latest published report about exactly this model, or None."""
    model = store.resolve(model_ref)
    for artifact in store.artifacts("report", f"model-{model.name}"):
        report = read_report(store, artifact)
        if report.subject == model.ref:
            return report
    return None


def snapshot_of(store: Store, ref: str) -> str:
    """The dataset snapshot behind `ref`, which is one or a token set packed from one."""
    artifact = store.resolve(ref)
    if artifact.kind == "dataset":
        return artifact.ref
    if artifact.kind == "tokens":
        text = (store.fetch(artifact) / "tokens.json").read_text(encoding="utf-8")
        return read_json(text, TokenSet).snapshot
    raise SpecError(
        f"{artifact.ref} is of kind {artifact.kind} and holds no documents", hint="give a dataset or a token set"
    )


def _training_data(store: Store, model_ref: str) -> str:
    above = [found for found in store.lineage(model_ref, direction="up").artifacts if found.kind == "tokens"]
    if not above:
        raise NotFound(f"no token set is recorded for {model_ref}", hint="name the data to evaluate on")
    return max(above, key=lambda found: found.created_s).ref


def _held_out(store: Store, snapshot: str) -> tuple[list[str], int]:
    """Held-out texts up to the cap, the last one cut, and how many documents there are."""
    taken: list[str] = []
    room, count = HELD_OUT_BYTES, 0
    for document in held_out_documents(store, snapshot):
        count += 1
        cut = document.text.encode("utf-8", "replace")[: max(0, room)].decode("utf-8", "ignore")
        if cut:
            taken.append(cut)
            room -= len(cut.encode())
    if not taken:
        read = snapshots.report(store, snapshot)
        raise SpecError(
            f"{snapshot} has no held-out document with text: {read.kept} of {read.read} documents were kept and "
            f"{len(read.skipped)} files could not be read",
            hint="it needs at least two documents; `mainspring data show` says what became of the others",
        )
    return taken, count


def _baselines(store: Store, snapshot: str, raw: list[bytes]) -> dict[str, Any]:
    """What n-gram and xz need for the held-out documents `raw`: computed once for the newest snapshot of a dataset."""
    artifact = store.resolve(snapshot)
    key = f"baselines:{artifact.name}"
    of = [EDITION, artifact.digest, TRAIN_BYTES, HELD_OUT_BYTES]
    known = store.recall(key)
    if known is not None and known["of"] == of:
        return known
    kept_back = held_out_sources(sources(store, snapshot))
    given = training_bytes(found.text for found in texts(store, snapshot) if found.source not in kept_back)
    counted = NGram(given)
    found = {
        "of": of,
        "given_bytes": sum(map(len, given)),
        "ngram": [counted.bits(document) for document in raw],
        "xz": xz_bits_per_byte(raw, given),
        "xz_alone": xz_bits_per_byte(raw),
    }
    store.remember(key, found)
    return found


def _measured(
    folder: Path, original: Path | None, documents: Sequence[str], progress: Progress
) -> tuple[DocumentBits, tuple[Score, ...]]:
    """Bits of every document, and what the model has lost against its original.

    That is the drift token by token where both share a tokenizer, else the difference in bits per byte.
    """
    if original is None:
        return document_bits(folder, documents, progress=progress), ()
    if share_tokenizer(original, folder, documents):
        return fidelity(original, folder, documents, progress=progress)
    bits = document_bits(folder, documents, progress=_part(progress, 0.0, 0.5))
    before = document_bits(original, documents, progress=_part(progress, 0.5, 1.0))
    return bits, (margin("bits_per_byte_minus_original", bits, before.bits),)


def _plain(name: str, value: float, samples: int) -> Score:
    return Score(name=name, value=value, unit="bits/byte", higher_is_better=False, samples=samples)


def _plot(bits: DocumentBits, ngram: NDArray[np.float64]) -> Plot:
    ours = tuple(("model", float(value), 0.0) for value in bits.bits / bits.bytes)
    theirs = tuple(("n-gram", float(value), 0.0) for value in ngram / bits.bytes)
    return Plot(
        title="Bits per byte of each held-out document",
        kind="histogram",
        x="bits per byte",
        y="documents",
        rows=ours + theirs,
    )


def _part(progress: Progress, start: float, end: float) -> Progress:
    return lambda fraction, message: progress(start + (end - start) * fraction, message)
