"""Whether ranks can have a part of each sequence: whether nothing but attention looks along it.

Context parallelism reaches over the parts in torch's `scaled_dot_product_attention` and nowhere else. A convolution, an
attention written out, or one inside `nn.MultiheadAttention` would see a part and say nothing. So the model is tried on
a few tokens, on the host: attention is replaced by something that stays at its position, one position is NaN from the
embedding on, and what comes out may be NaN there and nowhere else. Matrices are replaced too, by the mean of what goes
in, and parameters are one number each: the trial costs no memory and hardly any time, whatever the size of the model.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mainspring.models.structure import copy_with, set_cache
from mainspring.spec import MainspringError
from mainspring.train.parallel.context import position_argument, tell_positions, without_mask
from mainspring.train.parallel.loss import LossModule
from mainspring.train.recipe import Loss

LENGTH = 32  # tokens of the trial
MARKED = LENGTH // 2
ATTENTION = "torch's scaled_dot_product_attention"
PLAIN = 0.5  # every number that is not NaN


def why_whole(model: nn.Module, loss: Loss) -> str:
    """Why a rank must see whole sequences; nothing when it need not. Attention that is replaced is no reason."""
    if position_argument(model) is None:
        return f"{type(model).__name__} takes no positions of its tokens"
    trial = set_cache(_stand_in(model), used=True)
    tell_positions(trial, 0)
    watch = _Watch(trial)
    row = torch.zeros((1, LENGTH + 1), dtype=torch.int64)
    try:
        with torch.no_grad(), _Apart():
            LossModule(trial, loss)(row)
    except MainspringError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 the user's code on made-up numbers: anything may come out of it
        return f"it cannot be tried on {LENGTH} made-up tokens ({type(error).__name__}: {error})"
    return watch.reason


class _Watch:
    """Where NaN has come out of the modules of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.reason = "it gives nothing for each token"
        self._spread = ""
        for name, module in model.named_modules():
            if module is not model:
                module.register_forward_hook(lambda _, __, output, name=name: self._look(name, output))
        model.register_forward_hook(lambda _, __, output: self._judge(output))

    def _look(self, name: str, output: Any) -> None:
        for found in _by_token(output):
            if not self._spread and _marked(found) - {MARKED}:
                self._spread = name

    def _judge(self, output: Any) -> None:
        for found in _by_token(output)[:1]:
            marked = _marked(found)
            if marked - {MARKED}:
                self.reason = f"{self._spread or 'it'} looks along the sequence, and not by {ATTENTION}"
            elif marked:
                self.reason = ""


def _by_token(output: Any) -> list[Tensor]:
    """The floating tensors of an output that have a row for each token."""
    if isinstance(output, Tensor):
        whole = output.is_floating_point() and output.dim() > 1 and output.shape[:2] == (1, LENGTH)
        return [output] if whole else []
    each = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [found for part in each for found in _by_token(part)]


def _marked(found: Tensor) -> set[int]:
    return set(found[0].reshape(LENGTH, -1).isnan().any(-1).nonzero().flatten().tolist())


class _Apart(TorchFunctionMode):
    """While entered, attention and matrices keep to their position, and embeddings are NaN at one."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replaces what is looked for, passes on everything else."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if func is F.linear:
            return _project(*args, **kwargs)
        if func is F.embedding:
            return _look_up(*args, **kwargs)
        return func(*args, **kwargs)


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    without_mask(attn_mask)
    here = sum(each.mean((1, 3), keepdim=True) for each in (query, key, value))
    return here.expand(*query.shape[:-1], value.shape[-1]).clone()  # pyright: ignore[reportAttributeAccessIssue]


def _project(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: ARG001 torch's call
    return given.mean(-1, keepdim=True).expand(*given.shape[:-1], len(weight)).clone()


def _look_up(ids: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    found = torch.full((*ids.shape, weight.shape[-1]), PLAIN, dtype=weight.dtype)
    if ids.dim() and ids.shape[-1] == LENGTH:
        found.select(-2, MARKED).fill_(math.nan)
    return found


def _stand_in(model: nn.Module) -> nn.Module:
    """A copy of `model` on the host whose parameters take no memory; buffers that have values keep them."""

    def made(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            number = PLAIN if tensor.is_floating_point() else 0
            return nn.Parameter(torch.full((1,), number, dtype=tensor.dtype).expand(tensor.shape), requires_grad=False)
        if tensor.is_meta:
            return torch.full(tensor.shape, PLAIN if tensor.is_floating_point() else 0, dtype=tensor.dtype)
        return tensor.detach().cpu().clone()

    return copy_with(model, made)
