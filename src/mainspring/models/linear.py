"""Linear layers with 8-bit weights and 8-bit activations, fast on CPUs.

Weights are symmetric int8 with one scale per output channel. Activations are quantised at each call with one scale
per token (per row), so the result for a token never depends on what else is in the batch; a scale per tensor, as in
`quantized.linear_dynamic`, would make it depend.

oneDNN's fast kernel wants unsigned activations and one scale: rows go in as uint8 around 128 with scale 1, and the
row scales are multiplied in afterwards. Given signed activations the same operator takes a reference path several
hundred times slower. Before first use the kernel is checked against exact integer arithmetic, since CPUs without
VNNI may saturate in 16 bits; where it is missing or wrong, plain torch computes the same numbers, slowly.

On disk the layout is compressed-tensors' "int-quantized": `weight` int8 (out, in), `weight_scale` (out, 1).
"""

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mainspring.spec import SpecError

log = logging.getLogger(__name__)

Kernel = Literal["onednn", "torch"]
PEAK, ZERO = 127, 128
TINY = 1e-8  # floor of a row's largest value: a row of zeros stays zeros


def quantise_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 rows around 128 and their float32 scales (M, 1)."""
    scale_M1 = x_MK.abs().amax(-1, keepdim=True).float().clamp_(min=TINY) / PEAK
    q_MK = (x_MK.float() / scale_M1).round_().add_(ZERO).to(torch.uint8)
    return q_MK, scale_M1


def quantise_weight(w_NK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 weights, symmetric per output channel, and their float32 scales (N, 1)."""
    scale_N1 = w_NK.abs().amax(-1, keepdim=True).float().clamp_(min=TINY) / PEAK
    return (w_NK.float() / scale_N1).round_().to(torch.int8), scale_N1


class W8A8Linear(nn.Module):
    """`nn.Linear` for inference in 8 bits. `kernel` of None takes the fastest one that passes its self-test."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = False, kernel: Kernel | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kernel = in_features, out_features, kernel
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features, 1))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        self._packed: tuple[tuple[int, int], tuple[Tensor, Tensor, Tensor]] | None = None

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear, *, kernel: Kernel | None = None) -> "W8A8Linear":
        """Round the weights of `linear` to nearest."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, kernel=kernel)
        made.weight, made.weight_scale = quantise_weight(linear.weight)
        if linear.bias is not None:
            made.bias = linear.bias.detach().clone()
        return made

    def forward(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias` in the data type of `x` (float32 or bfloat16)."""
        rows_MK = x.reshape(-1, self.in_features)
        q_MK, scale_M1 = quantise_rows(rows_MK)
        if x.device.type == "cpu" and (self.kernel or best_kernel()) == "onednn":
            y_MN = _multiply_onednn(q_MK, *self._pack(), dtype=x.dtype).mul_(scale_M1)
        else:
            y_MN = _multiply_torch(q_MK, self.weight, self.weight_scale).mul_(scale_M1).to(x.dtype)
        if self.bias is not None:
            y_MN += self.bias
        return y_MN.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def _pack(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights in oneDNN's opaque layout, which cannot be stored, with scales and zero points.

        Made on first use, and again when weights are replaced, loaded or written into.
        """
        written = 0 if self.weight.is_inference() else self.weight._version  # noqa: SLF001 torch has no other counter
        at = self.weight.data_ptr(), written
        if self._packed is None or self._packed[0] != at:
            self._packed = (at, _pack_onednn(self.weight, self.weight_scale))
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles pack again for themselves."""
        return self.__dict__ | {"_packed": None}


@functools.cache
def best_kernel() -> Kernel:
    """`onednn` where it is present and agrees with integer arithmetic on this CPU, else `torch`."""
    try:
        wrong = _self_test()
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        wrong = str(error)
    if wrong:
        log.warning("int8 runs on the slow kernel", extra={"reason": wrong})
        return "torch"
    return "onednn"


def replace_linears(model: nn.Module, *, ignore: Sequence[str] = ()) -> list[str]:
    """Turn every linear layer of `model` into an empty `W8A8Linear` (on meta) unless its name is ignored.

    `ignore` holds names, or patterns as `re:...`, as compressed-tensors writes them. Returns what was replaced.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(_matches(name, pattern) for pattern in ignore)
    ]
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        with torch.device("meta"):
            empty = W8A8Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
        model.set_submodule(name, empty)
    return names


def describe_w8a8(ignore: Sequence[str] = ()) -> dict[str, Any]:
    """The `quantization_config` that vLLM reads for these layers; its head is no `Linear`, so it is named."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear", "lm_head"], "weights": weights, "input_activations": activations}
        },
        "ignore": list(ignore),
    }


def check_w8a8(raw: Mapping[str, Any], *, where: str) -> list[str]:
    """The layers a `quantization_config` leaves alone; `SpecError` when its scheme is not the one above."""
    known = describe_w8a8()
    if not isinstance(raw, Mapping) or not _is_table_of_tables(raw.get("config_groups") or {}):
        raise SpecError(f"{where}: quantization_config or its config_groups are not tables", hint="copy it again")
    groups = raw.get("config_groups") or {}
    wrong = [f"{key} {raw.get(key)!r}" for key in ("quant_method", "format") if raw.get(key) != known[key]] + [
        f"{part} {key} {(group.get(part) or {}).get(key)!r}"
        for group in groups.values()
        for part, wanted in known["config_groups"]["group_0"].items()
        if part != "targets"
        for key, value in wanted.items()
        if (group.get(part) or {}).get(key) != value
    ]
    if len(groups) != 1 and not wrong:
        wrong = [f"{len(groups)} config_groups"]
    if wrong:
        raise SpecError(
            f"{where}: quantisation with {wrong[0]} is not supported",
            hint="supported: compressed-tensors int-quantized W8A8, per channel and per token",
        )
    return list(raw.get("ignore") or ())


def _is_table_of_tables(value: object) -> bool:
    """Whether `value` maps names to groups, whose parts are tables or missing."""
    return isinstance(value, Mapping) and all(
        isinstance(group, Mapping)
        and all(isinstance(group.get(part) or {}, Mapping) for part in ("weights", "input_activations"))
        for group in value.values()
    )


def _matches(name: str, pattern: str) -> bool:
    return bool(re.match(pattern[3:], name)) if pattern.startswith("re:") else name == pattern


def _pack_onednn(weight_NK: Tensor, scale_N1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.ops.onednn.qlinear_prepack(weight_NK, None)
    return packed, scale_N1.flatten().float().contiguous(), torch.zeros(len(weight_NK), dtype=torch.int64)


def _multiply_onednn(q_MK: Tensor, packed: Tensor, scale_N: Tensor, zero_N: Tensor, *, dtype: torch.dtype) -> Tensor:
    """(M, N) products in `dtype`, without the row scales."""
    return torch.ops.onednn.qlinear_pointwise.default(
        q_MK, 1.0, ZERO, packed, scale_N, zero_N, None, 1.0, 0, dtype, "none", [], ""
    )


def _multiply_torch(q_MK: Tensor, weight_NK: Tensor, scale_N1: Tensor) -> Tensor:
    """(M, N) products in float32, without the row scales."""
    return F.linear(q_MK.float() - ZERO, weight_NK.float()) * scale_N1.flatten()


def _self_test() -> str:
    """What is wrong with oneDNN's kernel here, or nothing. The extreme rows are the ones that saturate."""
    generator = torch.Generator().manual_seed(0)
    q_MK = torch.randint(0, 256, (4, 96), generator=generator, dtype=torch.uint8)
    w_NK = torch.randint(-127, 128, (32, 96), generator=generator, dtype=torch.int8)
    q_MK[0], w_NK[0], q_MK[1], w_NK[1] = 255, 127, 1, -127
    exact_MN = (q_MK.long() - ZERO) @ w_NK.long().T
    for rows in (1, 4):
        found = _multiply_onednn(q_MK[:rows], *_pack_onednn(w_NK, torch.ones(32, 1)), dtype=torch.float32)
        if not torch.equal(found.long(), exact_MN[:rows]):
            return f"off by {(found.long() - exact_MN[:rows]).abs().max()} with {rows} rows"
    return ""
