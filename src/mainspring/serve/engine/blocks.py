"""Who may use how much of the KV cache, counted in blocks of a fixed number of tokens.

One budget covers two uses. Running sequences *hold* blocks. Whatever they leave is lent to *cached* copies of full
blocks, found again by a hash chained over all tokens before them (vLLM's automatic prefix caching, Kwon et al.
2023), and taken back in least-recently-used order the moment a sequence needs room.

Cached blocks are copies, not shared pages: a sequence's keys stay contiguous, which is what makes attention fast
without a custom kernel, and there is nothing to count references to. Copying 32 tokens costs about as much as
attending to them once. Deliberately absent: tensors (see `kv`).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise


def block_count(tokens: int, block_tokens: int) -> int:
    """How many blocks hold `tokens` tokens."""
    return -(-tokens // block_tokens)


def chain_hashes(tokens: Sequence[int], block_tokens: int, known: Sequence[bytes] = ()) -> list[bytes]:
    """One hash per full block, each covering every token up to the block's end; continues after `known`."""
    hashes = list(known)
    ends = range(len(hashes) * block_tokens, len(tokens) + 1, block_tokens)
    for start, end in pairwise(ends):
        data = b"".join(token.to_bytes(4, "little") for token in tokens[start:end])
        hashes.append(blake2b((hashes[-1] if hashes else b"") + data, digest_size=16).digest())
    return hashes


class BlockPool:
    """A budget of `total` blocks: held by sequences, cached, or free.

    Invariant: `held + cached <= total`. A cached block's place is an index below `total`, never given twice.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.held = 0
        self._places: OrderedDict[bytes, int] = OrderedDict()
        self._vacant = list(range(total - 1, -1, -1))

    @property
    def available(self) -> int:
        """Blocks a sequence may still take; cached ones give way."""
        return self.total - self.held

    @property
    def cached(self) -> int:
        """Blocks lent to copies."""
        return len(self._places)

    def hold(self, count: int) -> None:
        """Take `count` blocks for a sequence, dropping cached copies as needed."""
        assert 0 <= count <= self.available, (count, self.available)
        self.held += count
        while self.held + self.cached > self.total:
            self._drop_oldest()

    def release(self, count: int) -> None:
        """Return `count` held blocks."""
        assert 0 <= count <= self.held, (count, self.held)
        self.held -= count

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The places of the longest cached run that starts at the first hash, now the most recently used."""
        places: list[int] = []
        for digest in hashes:
            place = self._places.get(digest)
            if place is None:
                break
            self._places.move_to_end(digest)
            places.append(place)
        return places

    def cache(self, digest: bytes) -> int | None:
        """A place to copy a new full block to, or None when it is there already or sequences hold everything."""
        if digest in self._places:
            self._places.move_to_end(digest)
            return None
        if self.held + self.cached >= self.total:
            if not self._places:
                return None
            self._drop_oldest()
        place = self._vacant.pop()
        self._places[digest] = place
        return place

    def forget(self) -> None:
        """Drop every cached copy, as after a change of weights."""
        while self._places:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, place = self._places.popitem(last=False)
        self._vacant.append(place)
