"""Context parallelism: each rank has its own part of every sequence, and attention sees all of it.

Ranks hold consecutive parts. Every attention of the model gathers the keys and values of the ranks before it, in one
message (as Llama 3 is trained: Dubey et al. 2024, section 3.3.2); their gradients are summed back to where they came
from. Whatever else a transformer computes, it computes for each position alone. No user code is changed: torch's
`scaled_dot_product_attention` is caught on its way, and the model is told its positions where it takes them.

The last rank has most to do in causal attention. Deliberately absent: the interleaved order that would even this out,
because a loss that pairs each token with the next needs them side by side.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from mainspring.spec import SpecError
from mainspring.train.parallel.collectives import enter_joined

POSITIONS = ("positions_BT", "position_ids")
TOKENS = 2  # the dimension of queries, keys and values that runs along the sequence


class SharedAttention(TorchFunctionMode):
    """While entered, attention of this process reaches over the sequence parts of the whole group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replaces attention, passes on everything else."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 torch's signature
        **options: Any,
    ) -> Tensor:
        # Where tensors have no values transformers makes a mask that it leaves out where they have.
        if isinstance(attn_mask, FakeTensor):
            is_causal = True
        else:
            without_mask(attn_mask)
        both = enter_joined(torch.stack([key, value]), 1 + TOKENS, self._group)
        key, value = both[0], both[1]
        mask = None
        if is_causal:
            length = query.shape[TOKENS]
            seen = length * (self._group.rank() + 1)
            key, value = key.narrow(TOKENS, 0, seen), value.narrow(TOKENS, 0, seen)
            mask = torch.ones((length, seen), dtype=torch.bool, device=query.device).tril(seen - length)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p, **options)


def without_mask(mask: Tensor | None) -> None:
    """Raise `SpecError` for attention that is neither causal nor full."""
    if mask is not None:
        raise SpecError(
            "context parallelism knows causal and full attention, this model passes a mask",
            hint="set cp = 1 in the plan",
        )


def position_argument(model: nn.Module) -> str | None:
    """What `model` calls the positions of its tokens, where it takes them."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in POSITIONS if name in known), None)


def tell_positions(model: nn.Module, rank: int) -> None:
    """Have `model` count positions from where the part of `rank` begins.

    A recipe that tells positions itself (of packed documents, say) is refused when it does: they would not be heeded.
    """
    name = position_argument(model)
    assert name is not None
    forward, known = model.forward, inspect.signature(model.forward)

    def placed(*args: Any, **kwargs: Any) -> Any:
        if known.bind_partial(*args, **kwargs).arguments.get(name) is not None:
            raise SpecError(
                f"context parallelism counts positions itself, the recipe passes {name}",
                hint="leave it out, or set cp = 1 in the plan",
            )
        ids = args[0] if args else kwargs["input_ids"]
        first = rank * ids.shape[1]
        kwargs[name] = torch.arange(first, first + ids.shape[1], device=ids.device).expand(ids.shape)
        return forward(*args, **kwargs)

    model.forward = placed
