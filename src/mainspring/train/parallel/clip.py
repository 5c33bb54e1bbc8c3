"""The norm of a gradient that lies in parts on many ranks, some of them on several.

torch's `clip_grad_norm_` refuses tensors of different meshes (2.13); sums of squares do not care.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


def square_part(gradients: Iterable[tuple[Tensor, int]]) -> Tensor:
    """This rank's part of the squared norm, in float64: the sum over all ranks is the whole.

    `gradients` are this rank's parts, each with the number of ranks that hold the same one.
    """
    by_copies: dict[int, list[Tensor]] = {}
    for gradient, copies in gradients:
        exact = gradient.dtype in (torch.float32, torch.float64)
        norm = gradient if exact else torch.linalg.vector_norm(gradient, dtype=torch.float32)
        by_copies.setdefault(copies, []).append(norm)
    squares = [get_total_norm(parts).double().square() / copies for copies, parts in by_copies.items()]
    return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
