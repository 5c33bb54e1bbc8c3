"""Drop copies: exact ones by digest, near ones by MinHash, verified, one keeper for each star.

Near-duplicate search is MinHash over word 5-grams (Broder 1997) with LSH bands (32 bands of 4 of 128 hashes find a
pair of Jaccard 0.5 with probability 0.87 and of 0.7 with 0.9998), hashed by Daft. Two departures from common practice:

- Candidates are verified: the pair that removes a document has its exact Jaccard similarity computed. LSH alone with
  union-find chains unlike documents together (a cluster of 130, of which 31 % resembled its head).
- Clusters are stars: a document goes only if it is itself similar enough to a document that stays.

Scripts without spaces (Han, kana, Thai) count one character as a word. Documents of fewer than 5 words are left to the
exact stage: their MinHash says nothing and they would all collide.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa

from mainspring.data.frame import daft
from mainspring.spec import Progress, RuleCount, SpecError, silent

Policy = Literal["strict", "balanced", "aggressive"]
SIMILARITY: dict[Policy, float] = {"strict": 0.7, "balanced": 0.6, "aggressive": 0.5}

HASHES, BANDS, NGRAM = 128, 32, 5
SEED = 42
# Three standard deviations (at most 0.044) of the estimate from 128 hashes: pairs further below the threshold are not
# worth an exact comparison.
MARGIN = 0.13
WINDOW = 8  # neighbours of a document inside a bucket, besides the bucket's first
ROUNDS = 3
EXAMPLES = 5
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"


def dedup(
    table: pa.Table, *, policy: Policy = "balanced", progress: Progress = silent
) -> tuple[pa.Table, tuple[RuleCount, RuleCount]]:
    """Documents without their copies, and how many were exact and near ones; of copies the first one stays.

    Raises `SpecError` for an unknown policy.
    """
    if policy not in SIMILARITY:
        raise SpecError(f"no dedup policy {policy!r}", hint="known: " + ", ".join(SIMILARITY))
    progress(0.0, f"comparing {table.num_rows} documents")
    exact = exact_keepers(table["text"].to_pylist())
    survivors = table.take(np.flatnonzero(exact == np.arange(len(exact))))
    progress(0.2, f"{survivors.num_rows} differ; hashing their word {NGRAM}-grams")
    near = near_keepers(survivors["text"], threshold=SIMILARITY[policy], progress=progress)
    kept = survivors.take(np.flatnonzero(near == np.arange(len(near))))
    progress(1.0, f"kept {kept.num_rows} of {table.num_rows} documents")
    counts = (_count("exact_duplicates", table, exact), _count("near_duplicates", survivors, near))
    return kept, counts


def exact_keepers(texts: Sequence[str]) -> np.ndarray:
    """For each text the index of the first one that equals it up to case and spaces (itself, if none does)."""
    first: dict[bytes, int] = {}
    keepers = np.empty(len(texts), np.int64)
    for index, text in enumerate(texts):
        digest = hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()
        keepers[index] = first.setdefault(digest, index)
    return keepers


def near_keepers(texts: pa.ChunkedArray, *, threshold: float, progress: Progress = silent) -> np.ndarray:
    """For each text the index of the kept text it is a near copy of (itself, if it is kept).

    Invariants: a keeper is its own keeper, comes earlier, and has an exact 5-gram Jaccard similarity of at least
    `threshold` with every text it stands for.
    """
    keepers = np.arange(len(texts))
    if not len(texts):
        return keepers
    normal, sketches, long_enough = _sketch(texts)
    stars = _Stars(normal, threshold)
    candidates = np.flatnonzero(long_enough)
    progress(0.7, f"looking for near copies among {len(candidates)} documents")
    for _ in range(ROUNDS):  # later rounds find what full buckets hid; nearly always there is nothing left
        if len(candidates) < 2:
            break
        pairs = _similar_pairs(sketches, candidates, threshold - MARGIN)
        if not stars.absorb(pairs, keepers):
            break
        candidates = candidates[keepers[candidates] == candidates]
    return keepers


def shingles(normal: str) -> set[tuple[str, ...]]:
    """The word 5-grams of a normalised text."""
    words = normal.split()
    return set(zip(*(words[i:] for i in range(NGRAM)), strict=False))


def normalise(texts: Sequence[str]) -> list[str]:
    """Texts as near-duplicate search sees them: lower case, no ASCII punctuation, single spaces."""
    return _sketch(pa.chunked_array([pa.array(texts, pa.large_string())]))[0].to_pylist()


def _sketch(texts: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
    """Normalised texts, their MinHash sketches `(n, HASHES)` uint32, and which have enough words to compare."""
    spaced = daft.col("text").regexp_replace(_UNSPACED, " $1 ")
    normal = spaced.normalize(remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True)
    sketch = daft.col("normal").minhash(num_hashes=HASHES, ngram_size=NGRAM, seed=SEED, hash_function="xxhash3_64")
    rows = pa.table({"row": np.arange(len(texts)), "text": texts})
    frame = daft.from_arrow(rows).select("row", normal.alias("normal"))
    words = daft.col("normal").regexp_count(r"\S+")
    found = frame.select("row", "normal", sketch.alias("sketch"), words.alias("words")).to_arrow()
    order = np.argsort(found["row"].to_numpy())
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in found["sketch"].chunks])
    long_enough = found["words"].to_numpy()[order] >= NGRAM
    return found["normal"].take(order), flat.reshape(-1, HASHES)[order], long_enough


def _similar_pairs(sketches: np.ndarray, candidates: np.ndarray, at_least: float) -> np.ndarray:
    """Pairs `(earlier, later)` that share a band and whose sketches agree in at least this share of hashes."""
    found = [np.empty((0, 2), np.int64)]
    rows = HASHES // BANDS
    for band in range(BANDS):
        mixed = np.zeros(len(candidates), np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            mixed = (mixed ^ sketches[candidates, column].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        order = np.argsort(mixed, kind="stable")  # stable: inside a bucket, documents stay in reading order
        found.append(_bucket_pairs(mixed[order], candidates[order]))
    pairs = np.unique(np.concatenate(found), axis=0)
    agreement = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), 100_000):
        part = pairs[start : start + 100_000]
        agreement[start : start + 100_000] = (sketches[part[:, 0]] == sketches[part[:, 1]]).mean(1)
    return pairs[agreement >= at_least]


def _bucket_pairs(keys: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Each document with the first of its bucket and with its next few neighbours; bounded per document."""
    new = np.r_[True, keys[1:] != keys[:-1]]
    first = np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
    pairs = [np.stack([documents[first], documents], 1)[~new]]
    for step in range(1, WINDOW + 1):
        left = np.flatnonzero(keys[step:] == keys[:-step])
        pairs.append(np.stack([documents[left], documents[left + step]], 1))
    return np.concatenate(pairs)


class _Stars:
    """Greedy star clusters over normalised texts, in reading order."""

    def __init__(self, normal: pa.ChunkedArray, threshold: float) -> None:
        self._threshold = threshold
        self._heads: set[int] = set()
        self._shingles = lru_cache(maxsize=4096)(lambda index: shingles(normal[index].as_py()))

    def absorb(self, pairs: np.ndarray, keepers: np.ndarray) -> int:
        """Point every document that has a verified earlier neighbour still kept at it; returns how many.

        A document that others already point at is never absorbed, or their edge would lead to a removed one.
        """
        absorbed = 0
        for earlier, later in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
            open_ = keepers[later] == later and keepers[earlier] == earlier and later not in self._heads
            if open_ and self._similarity(earlier, later) >= self._threshold:
                keepers[later] = earlier
                self._heads.add(earlier)
                absorbed += 1
        return absorbed

    def _similarity(self, one: int, other: int) -> float:
        """Exact Jaccard similarity of the two sets of 5-grams."""
        mine, theirs = self._shingles(one), self._shingles(other)
        common = len(mine & theirs)
        return common / (len(mine) + len(theirs) - common)


def _count(rule: str, table: pa.Table, keepers: np.ndarray) -> RuleCount:
    removed = np.flatnonzero(keepers != np.arange(len(keepers)))
    sources = table["source"]
    examples = [f"{sources[i].as_py()}: copy of {sources[keepers[i]].as_py()}" for i in removed[:EXAMPLES]]
    return RuleCount(rule=rule, dropped=len(removed), examples=tuple(examples))
