"""What a language model has to beat: a compressor and an n-gram model, in bits per byte of the same documents.

`xz` is charged `size(train + held-out) - size(train)`: the held-out text given the training text, with one
dictionary that spans both and without container overhead. `NGram` is interpolated Kneser-Ney (Kneser and Ney 1995;
Chen and Goodman 1999, one discount per order) over bytes. Both see at most `TRAIN_BYTES` of training text. Neither
is charged for marking where a document ends, and neither is the language model.
"""

import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainspring.spec import SpecError

TRAIN_BYTES = 4 << 20  # 4 MiB: about 5 CPU seconds for both baselines together
ORDER = 8
EDITION = 1  # of the numbers: raise it when a change to this file changes them
_END = 0xFF  # never a byte of UTF-8, so it can mark where a document begins and ends
_SYMBOLS = 256


def training_bytes(texts: Iterable[str], limit: int = TRAIN_BYTES) -> list[bytes]:
    """The first `limit` bytes of `texts` as UTF-8, document by document."""
    taken: list[bytes] = []
    room = limit
    for text in texts:
        if room <= 0:
            break
        taken.append(text.encode("utf-8", "replace")[:room])
        room -= len(taken[-1])
    return taken


def xz_bits_per_byte(held_out: Sequence[bytes], given: Sequence[bytes] = ()) -> float:
    """Bits xz -9e needs for each byte of `held_out` once it has seen `given`."""
    size = sum(map(len, held_out))
    if not size:
        raise SpecError("no held-out bytes to compress")
    before, after = b"\n".join(given), b"\n".join(held_out)
    dictionary = max(1 << 16, 1 << (len(before) + len(after)).bit_length())
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]

    def compressed(data: bytes) -> int:
        return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))

    known = compressed(before + b"\n") if before else 0
    return 8 * (compressed(before + b"\n" + after if before else after) - known) / size


@dataclass(frozen=True, slots=True)
class _Order:
    """Counts of one order: sorted n-gram and context codes, and what interpolation needs of each."""

    grams: NDArray[np.uint64]
    counts: NDArray[np.float64]
    contexts: NDArray[np.uint64]
    totals: NDArray[np.float64]
    kinds: NDArray[np.float64]
    discount: float


class NGram:
    """An interpolated Kneser-Ney model over bytes; probabilities over all 256 symbols sum to 1 in any context."""

    def __init__(self, documents: Sequence[bytes], *, order: int = ORDER) -> None:
        if not 1 <= order <= 8:
            raise SpecError(f"an n-gram order of {order} is not between 1 and 8")
        if not any(documents):
            raise SpecError("an n-gram model needs at least one byte of training text")
        self.order = order
        codes = np.concatenate([_codes(document, order, ending=True) for document in documents])
        grams, counts = np.unique(codes, return_counts=True)
        levels = []
        for length in range(order, 0, -1):
            levels.append(_level(grams, counts.astype(np.float64)))
            # The next lower order counts in how many different contexts a gram continues, not how often it occurs.
            if length > 1:
                grams, counts = np.unique(grams & np.uint64((1 << 8 * (length - 1)) - 1), return_counts=True)
        self._levels = tuple(reversed(levels))

    def probability(self, codes: NDArray[np.uint64]) -> NDArray[np.float64]:
        """p(last byte | the bytes before it) of each code, a big-endian window of `order` bytes."""
        result = np.full(len(codes), 1 / _SYMBOLS)
        for length, level in enumerate(self._levels, start=1):
            gram = codes & np.uint64((1 << 8 * length) - 1)
            count = _find(level.grams, level.counts, gram)
            context = gram >> np.uint64(8)
            total = _find(level.contexts, level.totals, context)
            kinds = _find(level.contexts, level.kinds, context)
            seen = total > 0
            backoff = level.discount * kinds * result
            result = np.where(
                seen, (np.maximum(count - level.discount, 0) + backoff) / np.where(seen, total, 1), result
            )
        return result

    def bits(self, document: bytes) -> float:
        """Bits to write `document` from its beginning, not counting where it ends."""
        return float(-np.log2(self.probability(_codes(document, self.order, ending=False))).sum())


def ngram_bits_per_byte(held_out: Sequence[bytes], given: Sequence[bytes], *, order: int = ORDER) -> float:
    """Bits per byte of `held_out` under an n-gram model of `given`."""
    model = NGram(given, order=order)
    return sum(map(model.bits, held_out)) / sum(map(len, held_out))


def _codes(document: bytes, order: int, *, ending: bool) -> NDArray[np.uint64]:
    """One big-endian window of `order` bytes per byte of `document`; the first windows begin with the end mark."""
    padded = np.frombuffer(bytes([_END]) * (order - 1) + document + (bytes([_END]) if ending else b""), dtype=np.uint8)
    codes = np.zeros(max(0, len(padded) - order + 1), dtype=np.uint64)
    for offset in range(order):
        codes = (codes << np.uint64(8)) | padded[offset : offset + len(codes)].astype(np.uint64)
    return codes


def _level(grams: NDArray[np.uint64], counts: NDArray[np.float64]) -> _Order:
    contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
    once, twice = float((counts == 1).sum()), float((counts == 2).sum())
    return _Order(
        grams=grams,
        counts=counts,
        contexts=contexts,
        totals=np.add.reduceat(counts, first),
        kinds=np.diff(np.append(first, len(grams))).astype(np.float64),
        discount=min(0.95, once / (once + 2 * twice)) if once else 0.5,
    )


def _find(keys: NDArray[np.uint64], values: NDArray[np.float64], wanted: NDArray[np.uint64]) -> NDArray[np.float64]:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)
