"""Training batches whose position is one integer.

Sample `i` of a split is the tokens `[i * seq_len, (i + 1) * seq_len]`, one more than `seq_len` so that inputs and
targets come from one row. Which sample stands in slot `s` of global step `t` is a pure function of
`(seed, t * global_batch + s)`: a keyed Feistel permutation of each epoch (Luby and Rackoff 1988), with cycle walking
for lengths that are no power of four. So there is no shuffle buffer to save, any rank can compute any part of any
batch, and a run that was killed, resumed, or spread over another number of ranks sees every sample of an epoch exactly
once. The tail of a split that is shorter than a sample is not used.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mainspring.spec import NotFound, SpecError, TokenSet, TokenSplit
from mainspring.store.parse import read_json

MANIFEST = "tokens.json"
TRAIN, HELD_OUT = "train", "held_out"  # the splits that packing makes
ROUNDS = 6
MANY_PASSES = 8
"""Reading text again is worth almost what new text is up to 4 times, nothing beyond 16 (Muennighoff et al. 2023)."""
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
log = logging.getLogger(__name__)


class TokenLoader:
    """Rows of one split of a packed dataset. `position` is the next global step; the trainer moves it."""

    def __init__(self, folder: Path | str, split: str, *, seq_len: int, global_batch: int, seed: int = 0) -> None:
        if seq_len < 1 or global_batch < 1:
            raise SpecError(f"seq_len and global_batch must be at least 1, got {seq_len} and {global_batch}")
        self.token_set = read_token_set(folder)
        self.split = _find_split(self.token_set, split)
        self.seq_len = seq_len
        self.global_batch = global_batch
        self.seed = seed
        self.position = 0
        self.samples = (self.split.tokens - 1) // seq_len
        if self.samples < 1:
            raise SpecError(
                f"split {split!r} has {self.split.tokens} tokens, one sample needs {seq_len + 1}",
                hint="lower seq_len or add documents",
            )
        self._tokens = _map(Path(folder) / self.split.file, self.split.tokens, self.token_set.dtype)

    def batch(self, step: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Rows `[first, first + count)` of global step `step` as int64 `(count, seq_len + 1)`.

        A rank asks for its own rows; without `first` and `count` it is the whole global batch.
        """
        starts = self.sample_ids(step, first, count) * self.seq_len
        return self._tokens[starts[:, None] + np.arange(self.seq_len + 1)].astype(np.int64)

    def sample_ids(self, step: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Which samples those rows are."""
        count = self.global_batch - first if count is None else count
        if step < 0 or first < 0 or count < 0 or first + count > self.global_batch:
            raise SpecError(
                f"rows {first} to {first + count} of step {step} do not exist: a step has {self.global_batch}"
            )
        index = step * self.global_batch + first + np.arange(count, dtype=np.int64)
        epoch, within = np.divmod(index, self.samples)
        found = np.empty(count, np.int64)
        for one in np.unique(epoch):
            chosen = epoch == one
            found[chosen] = permute(within[chosen], self.samples, key=_key(self.seed, int(one)))
        return found

    def reading(self, steps: int) -> str:
        """How often `steps` steps read each token, in words; more than `MANY_PASSES` times is a warning too."""
        passes = steps * self.global_batch / self.samples
        told = f"{steps} steps read the {self.split.tokens:,} tokens {passes:.1f} times"
        if passes <= MANY_PASSES:
            return told
        enough = max(1, int(MANY_PASSES * self.samples / self.global_batch))
        log.warning(
            "so many steps learn these tokens by heart; add documents or lower steps",
            extra={"steps": steps, "tokens": self.split.tokens, "passes": round(passes, 1), "enough_steps": enough},
        )
        return f"{told}, which learns them by heart: add documents, or set steps to at most {enough}"

    def state(self) -> dict[str, int | str]:
        """What a checkpoint keeps: the position, and what gives it its meaning."""
        return {"position": self.position, **self._identity()}

    def load_state(self, state: Mapping[str, int | str]) -> None:
        """Continue at a saved position. Raises `SpecError` when it would mean other samples here."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise SpecError(
                    f"the checkpoint was reading with {name} {state.get(name)!r}, this run has {value!r}",
                    hint="resume with the data, batch and seed the run was started with, or start a new run",
                )
        self.position = int(state["position"])

    def _identity(self) -> dict[str, int | str]:
        return {
            "seed": self.seed,
            "seq_len": self.seq_len,
            "global_batch": self.global_batch,
            "split": self.split.name,
            "tokens": self.split.tokens,
            "snapshot": self.token_set.snapshot,
            "tokenizer": self.token_set.tokenizer,
        }


def read_token_set(folder: Path | str) -> TokenSet:
    """What a packed dataset's folder holds. Raises `NotFound` when it is not one."""
    path = Path(folder) / MANIFEST
    try:
        return read_json(path.read_text(encoding="utf-8"), TokenSet, str(path))
    except OSError as error:
        raise NotFound(f"{folder} is no packed dataset: {error.strerror} for {MANIFEST}") from error


def permute(index: np.ndarray, n: int, *, key: int) -> np.ndarray:
    """Where a key's pseudo-random permutation of `range(n)` sends each index."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    found = np.asarray(index, np.uint64)
    walking = np.ones(len(found), bool)
    while walking.any():  # the domain is under 4 n, so this takes 4 passes on average at the very most
        found[walking] = _feistel(found[walking], half, key)
        walking = found >= n
    return found.astype(np.int64)


def _feistel(value: np.ndarray, half: int, key: int) -> np.ndarray:
    """A permutation of `range(4 ** half)`."""
    mask = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & mask
    for number in range(ROUNDS):
        mixed = _mix(right + np.uint64((key + number * _GOLDEN) & _MASK))
        left, right = right, left ^ (mixed & mask)
    return (left << np.uint64(half)) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014); array arithmetic wraps."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _key(seed: int, epoch: int) -> int:
    mixed = _mix(np.array([seed & _MASK, epoch & _MASK], np.uint64) + np.uint64(_GOLDEN))
    return int(mixed[0]) ^ ((int(mixed[1]) * _GOLDEN) & _MASK)


def _find_split(token_set: TokenSet, name: str) -> TokenSplit:
    for split in token_set.splits:
        if split.name == name:
            return split
    known = ", ".join(split.name for split in token_set.splits)
    raise NotFound(f"no split {name!r} in this packed dataset", hint=f"it has: {known}")


def _map(path: Path, tokens: int, dtype: str) -> np.ndarray:
    try:
        found = np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot map {path}: {error}", hint="fetch the artifact again") from error
    if len(found) != tokens:
        raise SpecError(f"{path} holds {len(found)} tokens, its manifest says {tokens}")
    return found
