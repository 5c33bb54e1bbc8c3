"""A recipe's code tried on one row of made-up tokens, before anything is planned or started.

On the meta device, so that it takes no memory and no time, and on one machine, so that what is wrong with the code is
told once, with the user's file and line, and not by every rank of a gang in a traceback of torch.
"""
# torch re-exports these names without saying so in its type information.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from mainspring.models.structure import set_cache
from mainspring.models.transformer import Decoder
from mainspring.spec import MainspringError, SpecError
from mainspring.train.parallel import LossModule
from mainspring.train.recipe import Facts, Recipe, defined_at, line_of_user, next_token_loss

MOVING = frozenset({"add", "__add__", "__radd__"})
# What leaves the numbers of a range as they are, some of them, or makes them larger.
KEEPING = MOVING.union(
    ("__getitem__", "contiguous", "clone", "detach", "expand", "expand_as", "flatten", "int", "long", "repeat"),
    ("reshape", "squeeze", "to", "type_as", "unsqueeze", "view", "view_as"),
)


def try_recipe(recipe: Recipe, facts: Facts) -> nn.Module:
    """The recipe's model on the meta device, after a forward pass of it and its loss.

    Raises `SpecError` for a recipe that cannot be trained, with the user's file and line where there is one.
    """
    config = recipe.config
    with torch.device("meta"):
        model = _built(recipe, {**facts, "seq_len": config.seq_len, "seed": config.seed})
        _check_model(model, recipe)
        if type(model) is Decoder and config.seq_len > model.config.context:
            raise SpecError(
                f"seq_len is {config.seq_len}, the model's context {model.config.context}",
                hint="raise context in the recipe or lower seq_len",
            )
        if type(model) is not Decoder or recipe.loss is not next_token_loss:
            _try(model, recipe)
    return model


def _built(recipe: Recipe, facts: Facts) -> nn.Module:
    try:
        model = recipe.build(facts)
    except MainspringError:
        raise
    except Exception as error:  # the user's code: anything may come out of it
        if _wants_values(error):
            raise not_profiled(error) from error
        raise SpecError(
            f"{line_of_user(error)}the recipe's model cannot be built: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise SpecError(
            f"{defined_at(recipe.model)}the recipe's model is {model!r}, which is no torch.nn.Module",
            hint="the function that is given as model must return one",
        )
    return model


def _check_model(model: nn.Module, recipe: Recipe) -> None:
    where = defined_at(recipe.model)
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise SpecError(
                f"{where}parameter {name} has no size before the first batch",
                hint="a plan needs the sizes: write nn.Linear(in, out) for nn.LazyLinear(out)",
            )
        if not parameter.numel():
            raise SpecError(
                f"{where}parameter {name} of the model has nothing in it: its shape is {tuple(parameter.shape)}",
                hint="a size that the model was given is 0",
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SpecError(
            f"{where}there is nothing to train: {type(model).__name__} has no parameter that requires a gradient",
            hint="leave requires_grad of what shall be trained as it is",
        )


def _try(model: nn.Module, recipe: Recipe) -> None:
    _check_tables(model, recipe.config.seq_len)
    row = torch.zeros((1, recipe.config.seq_len + 1), dtype=torch.int64)
    trial = LossModule(set_cache(model, used=True), recipe.loss)
    try:
        with _Positions(model, recipe.config.seq_len):
            total, _ = trial(row)
    except MainspringError:
        raise
    except Exception as error:  # the user's code: anything may come out of it
        if type(model) is Decoder and (_wants_values(error) or "process group" in str(error)):
            return  # its figures are known without the loss, which may look at the scores, or ask which rank it is on
        if not _wants_values(error):
            raise _fails(error, model, recipe) from error
        raise not_profiled(error, model) from error
    if not total.requires_grad:
        raise SpecError(
            f"{defined_at(recipe.loss)}the recipe's loss does not depend on any parameter that is trained",
            hint="return it as a tensor that gradients go back from, without .detach() or torch.no_grad()",
        )


def _wants_values(error: Exception) -> bool:
    """Whether code has asked for the value of a tensor that has none."""
    words = ("meta tensor", "meta device", "data-dependent", "data dependent")
    return isinstance(error, NotImplementedError) or any(word in str(error) for word in words)


def not_profiled(error: Exception, model: nn.Module | None = None) -> SpecError:
    """What to say of code that cannot run without values, and where it is."""
    said = re.split(r"(?<=[.!?])\s", str(error), maxsplit=1)[0]  # torch goes on about its own insides
    module, defined = _module_at(error, model) if model is not None else ("", "")
    return SpecError(
        f"{line_of_user(error) or defined}the recipe's model cannot be profiled without computing{module}: {said}",
        hint="a model must not look at tensor values (.item(), if tensor > 0) in __init__ or forward",
    )


def _fails(error: Exception, model: nn.Module, recipe: Recipe) -> SpecError:
    module, defined = _module_at(error, model)
    where = line_of_user(error) or defined or defined_at(model) or defined_at(recipe.loss) or defined_at(recipe.model)
    called = "the model is called as model(ids), ids of (rows, seq_len); give the recipe a loss to call it otherwise"
    return SpecError(
        f"{where}the recipe fails on a row of made-up tokens{module}: {type(error).__name__}: {error}",
        hint=called
        if recipe.loss is next_token_loss
        else "the loss is called as loss(model, batch), batch an integer tensor of (rows, seq_len + 1) tokens",
    )


def _module_at(error: Exception, model: nn.Module) -> tuple[str, str]:
    """The innermost module that a failure went through, in words, and the innermost that a user wrote."""
    names = {id(module): name for name, module in model.named_modules()}
    said = defined = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        first = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
        if isinstance(first, nn.Module) and id(first) in names:
            name = names[id(first)]
            said = f" in {name} ({type(first).__name__})" if name else f" in {type(first).__name__}"
            defined = defined_at(first) or defined
    return said, defined


class _Positions(TorchFunctionMode):
    """While entered, a table that is shorter than the positions that are looked up in it is refused.

    Positions are what `torch.arange` counts, however it is reshaped or moved on. Meta tensors have no values, and a
    rank would be the first to find that there is no such row.
    """

    def __init__(self, model: nn.Module, seq_len: int) -> None:
        super().__init__()
        self._seq_len = seq_len
        self._names = {id(module.weight): name for name, module in model.named_modules() if _is_table(module)}
        self._highest = WeakTensorKeyDictionary()  # of each range: a number that it is known to reach

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Follows what counts, and looks at what is looked up."""
        kwargs = dict(kwargs or {})
        if func is F.embedding:
            self._check(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not result.is_floating_point():
            highest = self._reached(func, args, result)
            if highest is not None:
                self._highest[result] = highest
        return result

    def _reached(self, func: Callable[..., Any], args: tuple[Any, ...], result: Tensor) -> int | None:
        if func is torch.arange:
            return None if any(each < 0 for each in args if isinstance(each, int)) else result.numel() - 1
        known = self._highest.get(args[0]) if args and isinstance(args[0], Tensor) else None
        name, others = getattr(func, "__name__", ""), args[1:]
        if known is None or name not in KEEPING:
            return None
        if name == "__getitem__":
            # Of numbers that all differ as many are left as there are entries.
            plain = all(isinstance(each, slice | int | None) for each in _flat(others))
            return result.numel() - 1 if plain and args[0].numel() == known + 1 else None
        if name in MOVING and any(each.numel() > 1 if isinstance(each, Tensor) else each < 0 for each in others):
            return None
        return known

    def _check(self, ids: Tensor, weight: Tensor, *_: Any, **__: Any) -> None:
        if ids not in self._highest or self._highest[ids] < len(weight):
            return
        raise _too_few(self._seq_len, len(weight), self._names.get(id(weight), "its table"))


def _check_tables(model: nn.Module, seq_len: int) -> None:
    """Raise `SpecError` for a learned table of as many positions as a model of transformers says that it has.

    Some count them by what is no padding, which the trial cannot follow; rotations have no table and no such limit.
    """
    stated = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if isinstance(stated, int) and isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]:
            rows = module.num_embeddings - getattr(module, "offset", 0)  # OPT starts at its third row
            if rows == stated < seq_len:
                raise _too_few(seq_len, rows, name)


def _too_few(seq_len: int, rows: int, name: str) -> SpecError:
    return SpecError(
        f"seq_len is {seq_len}, the model has {rows} positions in {name}",
        hint="raise them in the recipe or lower seq_len",
    )


def _flat(index: tuple[Any, ...]) -> tuple[Any, ...]:
    return index[0] if len(index) == 1 and isinstance(index[0], tuple) else index


def _is_table(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)
