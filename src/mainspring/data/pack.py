"""Documents to token ids: training a tokenizer on a snapshot, and packing a snapshot with it.

A packed split is one flat file of ids, little-endian uint16 or uint32, that the loader maps into memory: document,
end token, document, end token, ordered by document id, which mixes the sources. The held-out split is a property of
a document's source (its digest falls below the share), not of the run: a document that was held out once stays held
out in every later snapshot, and the tokenizer does not learn from it either.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mainspring.data.loader import HELD_OUT, MANIFEST, TRAIN
from mainspring.data.snapshot import load_snapshot, sources, texts
from mainspring.models.tokenizer import Tokenizer, train_bpe
from mainspring.spec import (
    Artifact,
    Document,
    Progress,
    SpecError,
    TokenSet,
    TokenSplit,
    Unavailable,
    silent,
)
from mainspring.store import Store
from mainspring.store.parse import to_json

HELD_OUT_SHARE = 0.05
_BATCH_CHARACTERS = 4_000_000
_MOST_HELD_OUT = 0.5


def train_tokenizer(
    store: Store,
    snapshot_ref: str,
    *,
    vocab: int,
    name: str,
    held_out: float = HELD_OUT_SHARE,
    run: str = "",
    progress: Progress = silent,
) -> Artifact:
    """Learn a byte-level BPE tokenizer of at most `vocab` ids from the training split, and publish it."""
    snapshot = load_snapshot(store, snapshot_ref)
    kept_back = held_out_sources(sources(store, snapshot.ref), held_out)
    documents = (document.text for document in texts(store, snapshot.ref) if document.source not in kept_back)
    tokenizer = train_bpe(documents, vocab=vocab, progress=progress)
    with store.scratch() as folder:
        tokenizer.save(folder)
        meta = {"vocab": tokenizer.vocab, "asked": vocab, "held_out": held_out, "snapshot": snapshot.ref}
        return store.publish("tokenizer", name, folder, meta=meta, run=run, inputs=(snapshot.ref,))


def pack(
    store: Store,
    snapshot_ref: str,
    tokenizer_ref: str,
    *,
    name: str,
    held_out: float = HELD_OUT_SHARE,
    run: str = "",
    progress: Progress = silent,
) -> Artifact:
    """Tokenise a snapshot into a `tokens` artifact with the splits `train` and `held_out`.

    Raises `SpecError` for a tokenizer without an end token, and for a share that would leave a split empty.
    """
    snapshot = load_snapshot(store, snapshot_ref)
    chosen = store.resolve(tokenizer_ref)
    tokenizer = Tokenizer.load(store.fetch(chosen))
    if tokenizer.eos_id is None:
        raise SpecError(f"{chosen.ref} names no end token", hint='set "eos_token" in its tokenizer_config.json')
    kept_back = held_out_sources(sources(store, snapshot.ref), held_out)
    dtype = np.dtype("<u2" if tokenizer.vocab <= 1 << 16 else "<u4")
    with store.scratch() as folder:
        packer = _Packer(folder, tokenizer, dtype)
        documents = _counted(texts(store, snapshot.ref), snapshot.rows, progress)
        splits = packer.write(documents, kept_back)
        token_set = TokenSet(
            splits=splits,
            vocab=tokenizer.vocab,
            dtype=dtype.name,
            tokenizer=chosen.ref,
            snapshot=snapshot.ref,
        )
        (folder / MANIFEST).write_text(to_json(token_set), encoding="utf-8")
        meta = {split.name: split.tokens for split in splits} | {
            "vocab": tokenizer.vocab,
            "held_out_share": held_out,
            "snapshot": snapshot.ref,
            "tokenizer": chosen.ref,
        }
        inputs = (snapshot.ref, chosen.ref)
        artifact = store.publish("tokens", name, folder, meta=meta, run=run, inputs=inputs)
    progress(1.0, ", ".join(f"{split.name} {split.tokens} tokens" for split in splits))
    return artifact


def tokens_of(store: Store, ref: str, *, vocab: int, run: str = "", progress: Progress = silent) -> Artifact:
    """The packed tokens of `ref`: itself when it is one, else a dataset packed with a tokenizer learned from it.

    A tokenizer of this size, or tokens, that were already made from this snapshot are used again.
    """
    artifact = store.resolve(ref)
    if artifact.kind == "tokens":
        return artifact
    wanted = {"snapshot": artifact.ref, "asked": vocab, "held_out": HELD_OUT_SHARE}
    tokenizer = _made_before(store, "tokenizer", artifact.name, wanted) or train_tokenizer(
        store, artifact.ref, vocab=vocab, name=artifact.name, run=run, progress=_half(progress, 0)
    )
    wanted = {"snapshot": artifact.ref, "tokenizer": tokenizer.ref, "held_out_share": HELD_OUT_SHARE}
    return _made_before(store, "tokens", artifact.name, wanted) or pack(
        store, artifact.ref, tokenizer.ref, name=artifact.name, run=run, progress=_half(progress, 1)
    )


def held_out_sources(all_sources: Iterable[str], share: float = HELD_OUT_SHARE) -> frozenset[str]:
    """The sources that are kept out of training: those whose digest, as a fraction, is below `share`.

    A small collection still gets at least one source on either side, when it has two.
    """
    if not 0 <= share <= _MOST_HELD_OUT:
        raise SpecError(f"held_out is {share}, it must be between 0 and {_MOST_HELD_OUT}")
    fractions = {source: _fraction(source) for source in all_sources}
    chosen = {source for source, fraction in fractions.items() if fraction < share}
    if share and len(fractions) > 1:
        chosen |= {min(fractions, key=lambda source: fractions[source])}
        chosen -= {max(fractions, key=lambda source: fractions[source])}
    return frozenset(chosen)


def held_out_documents(store: Store, snapshot_ref: str, share: float = HELD_OUT_SHARE) -> Iterator[Document]:
    """The documents of a snapshot that packing with the same share keeps out of training, ordered by id."""
    kept_back = held_out_sources(sources(store, snapshot_ref), share)
    return (document for document in texts(store, snapshot_ref) if document.source in kept_back)


def _made_before(store: Store, kind: str, name: str, wanted: Mapping[str, object]) -> Artifact | None:
    """The newest artifact of this name whose metadata say it was made this way."""
    for artifact in store.artifacts(kind=kind, name=name):
        if wanted.items() <= json.loads(artifact.meta_json).items():
            return artifact
    return None


def _half(progress: Progress, number: int) -> Progress:
    return lambda fraction, message: progress((number + fraction) / 2, message)


def _fraction(source: str) -> float:
    digest = hashlib.sha256(f"held out: {source}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _counted(documents: Iterable[Document], total: int, progress: Progress) -> Iterator[Document]:
    for number, document in enumerate(documents):
        if number % 256 == 0:
            progress(number / total, f"packed {number} of {total} documents")
        yield document


class _Packer:
    """Writes the split files of one token set."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        assert tokenizer.eos_id is not None
        self._folder = folder
        self._tokenizer = tokenizer
        self._end = np.array([tokenizer.eos_id], dtype)
        self._counts = {name: {"tokens": 0, "documents": 0} for name in (TRAIN, HELD_OUT)}

    def write(self, documents: Iterable[Document], kept_back: frozenset[str]) -> tuple[TokenSplit, ...]:
        """Append every document to the file of its split; splits without a document are left out."""
        try:
            with ExitStack() as files:
                open_files = {
                    name: files.enter_context((self._folder / f"{name}.bin").open("wb")) for name in self._counts
                }
                for batch in _batches(documents):
                    self._append(batch, open_files, kept_back)
        except OSError as error:
            raise Unavailable(f"cannot write tokens to {self._folder}: {error.strerror}") from error
        for name, count in self._counts.items():
            if not count["documents"]:
                (self._folder / f"{name}.bin").unlink()
        return tuple(
            TokenSplit(name=name, file=f"{name}.bin", **count)
            for name, count in self._counts.items()
            if count["documents"]
        )

    def _append(self, batch: list[Document], open_files: Mapping[str, BinaryIO], kept_back: frozenset[str]) -> None:
        encoded = self._tokenizer.encode_batch([document.text for document in batch])
        for document, ids in zip(batch, encoded, strict=True):
            name = HELD_OUT if document.source in kept_back else TRAIN
            open_files[name].write(np.asarray(ids, self._end.dtype).tobytes() + self._end.tobytes())
            self._counts[name]["tokens"] += len(ids) + 1
            self._counts[name]["documents"] += 1


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of bounded size, so that memory does not depend on the collection."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
