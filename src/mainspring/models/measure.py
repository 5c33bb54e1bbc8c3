"""What any module costs, unit by unit, from one run of it: best on meta tensors, where that takes no time or memory.

Every unit of a chain (see `structure`) gets the FLOPs, the bytes and the parameters that fall between its cuts. Torch's
own counters are not enough: they see no attention on CPUs, attention's whole square of scores on meta, and one share of
a divided matrix as all of it. So attention is caught on its way and accounted for by formula as a fused kernel runs it
(Dao 2022): it keeps queries, keys, values, its output and one number per row. On a host torch has no such kernel for
dropout or for a learned bias, and keeps the scores of these too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mainspring.models.structure import first_output, first_tensor

MATRIX = 2  # dimensions
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")


@dataclass(slots=True)
class Figures:
    """What one unit cost in one run: totals over the tokens of the batch."""

    flops: int = 0
    attention_flops: float = 0.0
    kept_bytes: int = 0
    split_bytes: int = 0
    selective_bytes: int = 0
    kv_bytes: int = 0
    keys: int = 0
    output_bytes: int = 0
    widest_bytes: int = 0


@dataclass(slots=True)
class _Kept:
    """A storage that backward keeps, held so that its identity is not used again."""

    storage: torch.UntypedStorage
    split: bool
    units: list[int] = field(default_factory=list)


class Measurement(TorchDispatchMode):
    """Adds up what happens while it is entered, for the unit that is running. `unit` counts the cuts passed."""

    def __init__(self, blocks: int, weights: dict[int, object], *, chain: bool) -> None:
        super().__init__()
        self.figures = [Figures() for _ in range(blocks + (2 if chain else 1))]
        self._chain = chain
        self.unit = 0
        self._weights = weights
        self._kept: dict[int, _Kept] = {}
        self._made: dict[int, int] = {}
        self._copied: dict[int, tuple[Tensor, Tensor]] = {}
        self._regions: list[int] = []
        self._inputs: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Remembers where tensors were made, and what products gave.

        Keys and values that join an empty cache are what they were; training has none, see `set_cache`.
        Matrices picked from a stack, one for each token, are weights still: whoever computes with experts groups the
        tokens instead, but on meta transformers can only do it so.
        """
        found = func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0].strip("_")
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor):
                self._made.setdefault(storage_of(tensor), self.unit)
                if name == "cat" and len(full := [part for part in args[0] if part.numel()]) == 1:
                    self._copied[storage_of(tensor)] = tensor, full[0]
                if name == "index" and args[0].dim() > MATRIX and storage_of(args[0]) in self._weights:
                    self._weights[storage_of(tensor)] = tensor
                if name in PRODUCTS:
                    figures = self.figures[self.unit]
                    figures.selective_bytes += tensor.nbytes
                    figures.widest_bytes = max(figures.widest_bytes, tensor.nbytes)
        return found

    def enter_unit(self, unit: int, hidden: Tensor | None) -> None:
        """From here on `unit` runs; `hidden` is what flows in."""
        self.unit = unit
        if hidden is not None:
            self.figures[unit].selective_bytes += hidden.nbytes

    def enter_region(self, taken: Tensor | None) -> None:
        """From here on a region runs that tensor parallelism divides; `taken` is its input, which it does not."""
        self._regions.append(self.unit)
        if taken is not None:
            self._inputs.add(storage_of(taken))

    def leave_region(self) -> None:
        """The reverse."""
        self._regions.pop()

    def keep(self, tensor: Tensor) -> Tensor:
        """Called for every tensor that backward will want."""
        _, real = self._copied.get(storage_of(tensor), (tensor, tensor))
        at = storage_of(real)
        if at not in self._weights:
            split = bool(self._regions) and at not in self._inputs
            kept = self._kept.setdefault(at, _Kept(real.untyped_storage(), split))
            if self.unit not in kept.units:
                kept.units.append(self.unit)
        return tensor

    def settle(self) -> list[Figures]:
        """The figures, once the run is over. What the prologue made and several units keep is the prologue's.

        What the loss keeps of the scores is left out: planners add it, as they do the scores.
        """
        scores = self.figures[-1].widest_bytes if self._chain else 0
        for at, kept in self._kept.items():
            if kept.units[0] == len(self.figures) - 1 and kept.storage.nbytes() >= scores > 0:
                continue
            several = len(kept.units) > 1 and self._made.get(at) == 0
            figures = self.figures[0 if several else kept.units[0]]
            figures.kept_bytes += kept.storage.nbytes()
            figures.split_bytes += kept.storage.nbytes() * kept.split
        return self.figures


class _Fused(torch.autograd.Function):
    """Attention as a fused kernel would run it, on meta: its shapes and what it keeps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Heads innermost but one, as the kernels write it: putting them side by side again copies nothing.
        out = q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1])).transpose(-3, -2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ARG004 nothing is computed
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class Attention(TorchFunctionMode):
    """Catches attention, and tells `measurement` of it; `counter` must not count it a second time."""

    def __init__(self, measurement: Measurement, counter: FlopCounterMode) -> None:
        super().__init__()
        self._measurement = measurement
        self._counter = counter

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Accounts for attention, passes on everything else."""
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v, *_ = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))
        causal = bool(kwargs.get("is_causal") or (len(args) > 5 and args[5]))
        figures = self._measurement.figures[self._measurement.unit]
        pairs = q.numel() // q.shape[-1] * k.shape[-2]
        figures.attention_flops += 2.0 * pairs * (q.shape[-1] + v.shape[-1]) / (2 if causal else 1)
        figures.kv_bytes += k.nbytes + v.nbytes
        figures.keys = k.shape[-2]
        before = self._counter.get_total_flops()
        out = _Fused.apply(q, k, v) if q.is_meta else func(*args, **kwargs)
        figures.flops -= self._counter.get_total_flops() - before
        assert isinstance(out, Tensor)
        figures.selective_bytes += out.nbytes + 4 * (out.numel() // out.shape[-1])
        return out


@contextmanager
def measured(
    model: nn.Module, blocks: Sequence[nn.Module], regions: Sequence[nn.Module], *, chain: bool
) -> Iterator[Measurement]:
    """Measure what runs inside. Unit 0 is what comes before the first of `blocks`, unit `i` the `i`-th of them.

    In a `chain` one more unit is what comes after the last; otherwise that, and what is between them, is unit 0 too.
    """
    measurement = Measurement(len(blocks), {storage_of(p): p for p in model.parameters()}, chain=chain)
    counter = FlopCounterMode(display=False)
    watch = _Watch(measurement, counter, len(blocks) if chain else 0)
    with ExitStack() as stack:
        for unit, block in enumerate(blocks, start=1):
            arrive, depart = partial(watch.arrive, unit), partial(watch.depart, unit)
            stack.callback(block.register_forward_pre_hook(arrive, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(depart).remove)
        for module in regions:
            for hook in _watch_region(module, measurement):
                stack.callback(hook.remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(counter)
        stack.enter_context(measurement)
        stack.enter_context(Attention(measurement, counter))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(measurement.keep, lambda tensor: tensor))
        yield measurement
        watch.turn(measurement.unit)


class _Watch:
    """Tells a measurement which unit runs. `last` is the last block of a chain, 0 without one."""

    def __init__(self, measurement: Measurement, counter: FlopCounterMode, last: int) -> None:
        self._measurement = measurement
        self._counter = counter
        self._last = last
        self._counted = 0

    def turn(self, unit: int, hidden: Tensor | None = None) -> None:
        """Give the FLOPs since the last turn to the unit that ran, and let `unit` run."""
        flops = self._counter.get_total_flops()
        self._measurement.figures[self._measurement.unit].flops += flops - self._counted
        self._counted = flops
        self._measurement.enter_unit(unit, hidden)

    def arrive(self, unit: int, _: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = first_tensor(args, kwargs)[1]
        if unit == 1 and self._last and hidden is not None:
            self._measurement.figures[0].output_bytes = hidden.nbytes
        self.turn(unit, hidden)

    def depart(self, unit: int, _: nn.Module, __: Any, output: Any) -> None:
        first = first_output(output)
        self._measurement.figures[unit].output_bytes = 0 if first is None else first.nbytes
        if not self._last:
            self.turn(0)
        elif unit == self._last:
            self.turn(unit + 1)


def _watch_region(module: nn.Module, measurement: Measurement) -> list[Any]:
    def arrive(_: nn.Module, args: Any, kwargs: Any) -> None:
        measurement.enter_region(first_tensor(args, kwargs)[1])

    def depart(*_: Any) -> None:
        measurement.leave_region()

    return [module.register_forward_pre_hook(arrive, with_kwargs=True), module.register_forward_hook(depart)]


def storage_of(tensor: Tensor) -> int:
    """What tensors that share memory have in common; on meta they have no address."""
    return tensor.untyped_storage()._cdata  # noqa: SLF001
