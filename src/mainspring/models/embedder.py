"""Text to vectors. Any sentence-transformers model through ONNX, or, with no weights at hand, LSA.

Latent semantic analysis (Deerwester et al. 1990) needs nothing but the corpus itself: TF-IDF reduced to its leading
singular directions, found by randomised subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4). On
Cranfield its 256 dimensions rank as well as a 6-layer MiniLM.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from mainspring.models.config import locate, read_json
from mainspring.spec import SpecError, Unavailable

if TYPE_CHECKING:
    from torch import Tensor

Vectors = npt.NDArray[np.float32]

WORD = re.compile(r"\w+")
TERMS_MAX = 40_000
COMMON = 0.5  # a term in more than this share of the texts tells them apart badly
HUB_FILES = ("*.json", "1_Pooling/config.json", "onnx/model.onnx", "onnx/model.onnx_data")
POWER_STEPS, EXTRA_DIRECTIONS = 4, 32


class Embedder(Protocol):
    """Turns texts into vectors whose dot product is their similarity."""

    @property
    def name(self) -> str:
        """What an index records as its embedder."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 (n, dim), each row of length 1 (of length 0 for a text with nothing known in it)."""
        ...

    @property
    def nested(self) -> bool:
        """Whether the first coordinates of a vector, scaled to length 1, are an embedding of fewer dimensions."""
        ...

    def count(self, texts: Sequence[str]) -> int:
        """How many tokens `encode` reads of `texts`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens of this embedder; `SpecError` for ids that are none."""
        ...

    def save(self, folder: Path | str) -> None:
        """Write everything `load_embedder` needs to `folder`."""
        ...


class Lsa(Embedder):
    """TF-IDF projected onto `directions` (terms, dim); row i belongs to `terms[i]`."""

    def __init__(self, terms: Sequence[str], idf: Vectors, directions: Vectors) -> None:
        self._terms, self._idf, self._directions = tuple(terms), idf, directions
        self._place = {term: index for index, term in enumerate(self._terms)}

    @property
    def name(self) -> str:
        """`lsa-` and the dimension."""
        return f"lsa-{self.dim}"

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._directions.shape[1]

    @property
    def nested(self) -> bool:
        """Yes: directions come in the order of what they explain."""
        return True

    def count(self, texts: Sequence[str]) -> int:
        """Words, known or not."""
        return sum(len(WORD.findall(text)) for text in texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Refuse: words have no ids that anybody else could know."""
        raise SpecError(f"{self.name} embeds words and has no token ids, got {len(ids)}", hint="send text")

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 (n, dim), rows of length 1; zeros for a text without a known term."""
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            places, weights = _weigh(split_terms(text), self._place, self._idf)
            out[row] = weights @ self._directions[places]
        return normalise(out)

    def save(self, folder: Path | str) -> None:
        """Write `embedder.json` and `lsa.npz`."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / "lsa.npz", idf=self._idf, directions=self._directions.astype(np.float16))
            described = {"kind": "lsa", "dim": self.dim, "terms": self._terms}
            (folder / "embedder.json").write_text(json.dumps(described), encoding="utf-8")
        except OSError as error:
            raise Unavailable(f"cannot write the embedder to {folder}: {error}", hint="check the disk") from error

    @classmethod
    def load(cls, folder: Path | str) -> "Lsa":
        """The embedder that `save` wrote."""
        folder = Path(folder)
        try:
            with (folder / "lsa.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                idf, directions = arrays["idf"], arrays["directions"].astype(np.float32)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise SpecError(f"{folder / 'lsa.npz'} cannot be read: {error}", hint="build the index again") from error
        terms = read_json(folder / "embedder.json").get("terms", ())
        if not len(terms) == len(idf) == len(directions):
            raise SpecError(f"{folder}: {len(terms)} terms for {len(directions)} rows of lsa.npz")
        return cls(terms, idf, directions)


def fit_lsa(texts: Iterable[str], *, dim: int = 256) -> Lsa:
    """An embedder fitted on `texts`: the same texts give the same one. `dim` shrinks to what they support."""
    counts = [split_terms(text) for text in texts]
    spread: Counter[str] = Counter()
    for count in counts:
        spread.update(count.keys())
    least = 2 if len(counts) >= 50 else 1
    most = max(COMMON * len(counts), least)
    kept = [(seen, term) for term, seen in spread.items() if least <= seen <= most]
    terms = sorted(term for _, term in sorted(kept, key=lambda pair: (-pair[0], pair[1]))[:TERMS_MAX])
    if not terms:
        raise SpecError(f"no words to fit an embedder on in {len(counts)} texts")
    seen = np.array([spread[term] for term in terms], dtype=np.float32)
    idf = np.log((1 + len(counts)) / (1 + seen)) + 1
    place = {term: index for index, term in enumerate(terms)}
    directions = _leading_directions([_weigh(count, place, idf) for count in counts], len(terms), dim)
    # Rounded to what `save` keeps, so that an embedder and its copy on disk give the same vectors.
    return Lsa(terms, idf, directions.astype(np.float16).astype(np.float32))


def load_embedder(path_or_name: Path | str) -> Embedder:
    """The embedder in a folder, or the sentence-transformers model of that name (int8, through onnxruntime)."""
    folder = locate(path_or_name, files=HUB_FILES)
    if (folder / "lsa.npz").is_file():
        return Lsa.load(folder)
    from mainspring.models.onnx_embedder import OnnxEmbedder

    return OnnxEmbedder.open(folder, name=str(path_or_name))


def split_terms(text: str) -> Counter[str]:
    """Lower-case words with their counts; `read_csv` counts as itself and as its parts."""
    words = WORD.findall(text.lower())
    parts = [part for word in words if "_" in word for part in word.split("_") if part]
    return Counter(words + parts)


def normalise(rows: Vectors) -> Vectors:
    """`rows` scaled to length 1; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(np.float32)


def _weigh(counts: Counter[str], place: dict[str, int], idf: Vectors) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Places and weights of the known terms: (1 + log tf) idf, scaled to length 1."""
    known = sorted((place[term], count) for term, count in counts.items() if term in place)
    places = np.array([at for at, _ in known], dtype=np.int64)
    weights = (1 + np.log(np.array([count for _, count in known], dtype=np.float32))) * idf[places]
    return places, (weights / max(float(np.linalg.norm(weights)), 1e-12)).astype(np.float32)


def _leading_directions(rows: Sequence[tuple[npt.NDArray[np.int64], Vectors]], terms: int, dim: int) -> Vectors:
    """The right singular vectors (terms, dim) of the sparse matrix `rows`, signs fixed."""
    import torch

    ends = np.cumsum([0] + [len(places) for places, _ in rows])
    crow = torch.from_numpy(ends)
    col = torch.from_numpy(np.concatenate([places for places, _ in rows]))
    values = torch.from_numpy(np.concatenate([weights for _, weights in rows]))
    row = torch.repeat_interleave(torch.arange(len(rows)), crow.diff())
    down = torch.sparse_coo_tensor(torch.stack([row, col]), values, (len(rows), terms), check_invariants=True)
    down = down.coalesce()
    up = down.t().coalesce()
    wide = min(dim + EXTRA_DIRECTIONS, terms, len(rows))
    basis = torch.randn(terms, wide, generator=torch.Generator().manual_seed(0))
    for _ in range(POWER_STEPS):
        basis = _orthonormal(torch.sparse.mm(down, basis))
        basis = _orthonormal(torch.sparse.mm(up, basis))
    seen = torch.sparse.mm(down, basis).double()
    _, right = torch.linalg.eigh(seen.T @ seen)
    found = (basis @ right.flip(1).float())[:, :dim]
    largest = found.abs().argmax(0, keepdim=True)
    return (found * found.gather(0, largest).sign()).numpy()


def _orthonormal(columns: "Tensor") -> "Tensor":
    """An orthonormal basis of what `columns` span, by the eigenvectors of their float64 Gram matrix.

    Ten times faster than the QR of a 6,000 x 288 matrix. Squaring the condition number costs nothing in float64:
    directions weaker than a millionth of the strongest are rounding errors of the float32 columns, and are left out.
    """
    import torch

    exact = columns.double()
    values, vectors = torch.linalg.eigh(exact.T @ exact)
    kept = values > 1e-12 * values[-1]
    return (exact @ (vectors[:, kept] / values[kept].sqrt())).float()
