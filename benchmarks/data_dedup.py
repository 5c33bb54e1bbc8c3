"""How fast are near duplicates found, how many of them, and is what goes really a copy of something that stays?

The corpus is the documentation inside this Python, with copies of some documents edited at random: reflowed and
recased, or with 1 to 8 % of their words replaced. The peer is datasketch, the usual library: MinHash with 128
permutations over word 5-grams, banded LSH, and a document goes when the index finds one like it. What is true is
computed apart from both, from the exact Jaccard similarity of every pair that shares a 5-gram.

A removal is right when some kept document has a similarity of at least the threshold. What is missed are kept
documents with such an earlier kept neighbour. Speed is text per second of processor time, all threads counted.

Ceiling: 128 hashes of 8 bytes for each word; at 4 hashes a nanosecond and 6 bytes a word that is 190 MB/s per core.

Run: python benchmarks/data_dedup.py [--quick] [--rounds 5]
"""

import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from mainspring.data.dedup import near_keepers
from mainspring.data.read import read
from measure import Findings, parse_options, publish, ratios, spread, take_turns

THRESHOLD, HASHES, NGRAM = 0.6, 128, 5
COPIED, EDITS = 0.3, (0.0, 0.01, 0.02, 0.04, 0.08)
OURS, PEER = "Mainspring", "datasketch"

Neighbours = list[dict[int, float]]
"""For each document the earlier and later ones it resembles, with their similarity, if at least the threshold."""


def make_corpus(documents: Sequence[str], *, seed: int = 0) -> list[str]:
    """The documents and edited copies of some, shuffled; without exact copies, which another stage removes."""
    rng = random.Random(seed)
    words = sorted({word for text in documents[:200] for word in text.split()})
    made = [edit(text, rng, words, share=rng.choice(EDITS)) for text in documents if rng.random() < COPIED]
    corpus = sorted({*documents, *made})
    rng.shuffle(corpus)
    return corpus


def edit(text: str, rng: random.Random, words: Sequence[str], *, share: float) -> str:
    """`text` with this share of its words replaced; with 0 only its case and spacing change."""
    if not share:
        return re.sub(r"\n+", "\n\n", text).upper()
    return " ".join(rng.choice(words) if rng.random() < share else word for word in text.split(" "))


def word_grams(text: str) -> set[str]:
    """The word 5-grams of a text, without case and punctuation."""
    words = re.sub(r"[^\w\s]|_", "", text.lower()).split()
    return {" ".join(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)}


def find_neighbours(corpus: Sequence[str]) -> Neighbours:
    """Every pair at or above the threshold, by counting what each document shares with every other."""
    grams = [word_grams(text) for text in corpus]
    holders: dict[str, list[int]] = defaultdict(list)
    for index, found in enumerate(grams):
        for gram in found:
            holders[gram].append(index)
    neighbours: Neighbours = [{} for _ in corpus]
    sizes = np.array([len(found) for found in grams])
    for index, found in enumerate(grams):
        lists = [holders[gram] for gram in found if len(holders[gram]) > 1]
        if not lists:
            continue
        shared = np.bincount(np.concatenate(lists), minlength=len(corpus))
        similar = shared / (sizes + sizes[index] - shared)
        for other in np.flatnonzero(similar >= THRESHOLD):
            if other != index:
                neighbours[index][int(other)] = float(similar[other])
    return neighbours


def keep_with_datasketch(corpus: Sequence[str]) -> list[bool]:
    """Which documents stay, by the library's own recipe: ask the index, and insert what it does not know."""
    index = MinHashLSH(threshold=THRESHOLD, num_perm=HASHES)
    kept: list[bool] = []
    for number, text in enumerate(corpus):
        grams = word_grams(text)
        sketch = MinHash(num_perm=HASHES)
        if grams:
            sketch.update_batch([gram.encode() for gram in grams])
        kept.append(not (grams and index.query(sketch)))
        if grams and kept[-1]:
            index.insert(number, sketch)
    return kept


def keep_with_mainspring(corpus: Sequence[str]) -> list[bool]:
    """Which documents stay, by the stage of our pipeline."""
    column = pa.chunked_array([pa.array(corpus, pa.large_string())])
    keepers = near_keepers(column, threshold=THRESHOLD)
    return (keepers == np.arange(len(keepers))).tolist()


@dataclass(frozen=True, slots=True)
class Quality:
    """What became of the copies: shares of 1, and how many documents went."""

    precision: float
    recall: float
    removed: int


def judge(kept: Sequence[bool], neighbours: Neighbours) -> Quality:
    """Hold the decisions against the truth, as the docstring above defines right and missed."""
    removed = [index for index, stays in enumerate(kept) if not stays]
    right = sum(any(kept[other] for other in neighbours[index]) for index in removed)
    missed = sum(
        any(kept[other] and other < index for other in neighbours[index]) for index, stays in enumerate(kept) if stays
    )
    return Quality(right / max(1, len(removed)), right / max(1, right + missed), len(removed))


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the corpus: megabytes per second of processor time, and what was kept."""

    megabytes_per_cpu_s: float
    kept: list[bool]


def passing(keep: Callable[[Sequence[str]], list[bool]], corpus: Sequence[str]) -> Callable[[int], Pass]:
    """An arm that runs `keep` over the corpus."""
    megabytes = sum(len(text.encode()) for text in corpus) / 1e6

    def run(number: int) -> Pass:  # noqa: ARG001 every pass is alike
        started = time.process_time()
        kept = keep(corpus)
        return Pass(megabytes / (time.process_time() - started), kept)

    return run


def main() -> None:
    options = parse_options(__doc__, rounds=5)
    rounds, documents = (1, 600) if options.quick else (options.rounds, 1_000_000)
    texts: list[str] = read("python:docs")[0]["text"].to_pylist()
    corpus = make_corpus(texts[:documents])
    neighbours = find_neighbours(corpus)
    arms = {OURS: passing(keep_with_mainspring, corpus), PEER: passing(keep_with_datasketch, corpus)}
    arms[OURS](0)  # the first pass loads the dataframe engine
    found = take_turns(arms, rounds=rounds)
    speeds = {arm: [each.megabytes_per_cpu_s for each in passes] for arm, passes in found.items()}
    quality = {arm: judge(passes[0].kept, neighbours) for arm, passes in found.items()}
    faster = spread(ratios(speeds[OURS], speeds[PEER]))
    megabytes = sum(len(text.encode()) for text in corpus) / 1e6
    publish(
        Findings(
            benchmark="data_dedup",
            headline=f"{faster.median:.1f} times the text per processor second of datasketch, with a precision of "
            f"{quality[OURS].precision:.3f} (datasketch {quality[PEER].precision:.3f}) and a recall of "
            f"{quality[OURS].recall:.3f} ({quality[PEER].recall:.3f})",
            columns=("arm", "MB per processor second", "precision", "recall", "removed"),
            rows=tuple(
                (
                    arm,
                    f"{spread(speeds[arm])}",
                    f"{quality[arm].precision:.3f}",
                    f"{quality[arm].recall:.3f}",
                    f"{quality[arm].removed} of {len(corpus)}",
                )
                for arm in arms
            ),
            numbers={
                "speed_ratio": faster.median,
                "precision": quality[OURS].precision,
                "recall": quality[OURS].recall,
                "peer_precision": quality[PEER].precision,
                "peer_recall": quality[PEER].recall,
            },
            spec={"documents": len(corpus), "megabytes": megabytes, "threshold": THRESHOLD, "rounds": rounds},
            samples={"megabytes_per_cpu_s": speeds},
        ),
        packages=("daft", "datasketch", "numpy"),
    )


if __name__ == "__main__":
    main()
