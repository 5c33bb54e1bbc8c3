"""Which modules tensor parallelism can divide, and how: a description that the profile counts by and training applies.

A region (Shoeybi et al. 2019, section 3) is a part of a model between a value that all ranks have and a sum of what
each of them computes: `columns` are divided by their outputs, `rows` by their inputs, and what lies between works on
each rank's heads or features alone. Known families are found by the names of their layers. Any other module that
holds linear layers is tried: its layers are cut in two, and if the halves add up to the whole it is a region.

A vocabulary is divided by its entries, in the embedding and in the head.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

# Names of layers: those divided by outputs (with how many matrices each holds side by side), those by inputs.
FAMILIES: tuple[tuple[dict[str, int], tuple[str, ...]], ...] = (
    ({"q_proj": 1, "k_proj": 1, "v_proj": 1}, ("o_proj",)),  # Llama, Qwen, Mistral, Gemma
    ({"q_proj": 1, "k_proj": 1, "v_proj": 1}, ("out_proj",)),  # OPT, BART
    ({"c_attn": 3}, ("c_proj",)),  # GPT-2's attention
    ({"gate_proj": 1, "up_proj": 1}, ("down_proj",)),
    ({"c_fc": 1}, ("c_proj",)),  # GPT-2's feed-forward
)
HEADS = ("num_heads", "n_heads", "n_head", "num_attention_heads", "num_key_value_heads", "split_size", "heads")
WIDTHS = ("head_dim", "width")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed", "embedding", "token_embedding")
LOGITS = ("lm_head", "head", "output", "embed_out")
TRIAL_TOKENS = 3
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Region:
    """A module to divide: the names of its parts are relative to it. `sizes` are what the degree must divide."""

    name: str
    columns: tuple[tuple[str, int], ...]
    rows: tuple[str, ...]
    counts: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]

    def fits(self, degree: int) -> bool:
        """Whether every rank would get the same."""
        return all(size % degree == 0 for _, size in self.sizes)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The modules that hold or read a table with a row for each of `size` words."""

    embedding: str
    head: str
    size: int


def regions(model: nn.Module, *, whole: Sequence[str] = ()) -> list[Region]:
    """What tensor parallelism can divide, but for modules that a pattern of `whole` names: by path, or by class."""
    found: list[Region] = []
    kept_under: list[str] = []
    for name, module in model.named_modules():
        if any(fnmatchcase(word, pattern) for word in (name, type(module).__name__) for pattern in whole):
            kept_under.append(name)
        kept = any(name == other or name.startswith(f"{other}.") for other in kept_under)
        inside = any(name.startswith(f"{other.name}.") for other in found)
        if not kept and not inside and (region := _known(name, module) or _tried(name, module)) is not None:
            found.append(region)
    return found


def vocabulary(model: nn.Module) -> Vocabulary | None:
    """The embedding and the head of a language model, when both can be divided by words."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or last not in EMBEDDINGS:
            continue
        head = _head(model, module)
        if head:
            return Vocabulary(embedding=name, head=head, size=module.num_embeddings)
    return None


def is_linear(module: nn.Module | None) -> bool:
    """Whether `module` multiplies by one matrix: torch's own, or the transposed one of GPT-2 in transformers."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_transposed(module: nn.Module) -> bool:
    """Whether its weight is stored as (inputs, outputs)."""
    return not isinstance(module, nn.Linear)


def out_features(module: nn.Module) -> int:
    """Outputs of a linear layer."""
    weight = module.get_parameter("weight")
    return weight.shape[1] if is_transposed(module) else weight.shape[0]


def in_features(module: nn.Module) -> int:
    """Inputs of a linear layer."""
    weight = module.get_parameter("weight")
    return weight.shape[0] if is_transposed(module) else weight.shape[1]


def _known(name: str, module: nn.Module) -> Region | None:
    linear = {key for key, child in module.named_children() if is_linear(child)}
    for columns, rows in FAMILIES:
        if linear == {*columns, *rows}:
            sizes = _sizes(module, columns, rows)
            counts = tuple(count for count in HEADS if _whole_number(module, count))
            return Region(name, tuple(columns.items()), rows, counts, sizes) if sizes else None
    return None


def _sizes(module: nn.Module, columns: dict[str, int], rows: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """What the degree must divide; nothing when the layers do not fit together."""
    outputs = {key: out_features(module.get_submodule(key)) // matrices for key, matrices in columns.items()}
    inner = in_features(module.get_submodule(rows[0]))
    width = next((w for attribute in WIDTHS if (w := _whole_number(module, attribute))), 0)
    if "q_proj" not in columns and "c_attn" not in columns:
        return (("ffn", inner),) if set(outputs.values()) == {inner} else ()
    if not width or outputs[next(iter(columns))] != inner:
        return ()
    shared = outputs.get("k_proj", inner)
    return (("heads", inner // width), *((("kv_heads", shared // width),) if shared != inner else ()))


def _whole_number(module: nn.Module, attribute: str) -> int:
    value = vars(module).get(attribute)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _tried(name: str, module: nn.Module) -> Region | None:
    """A region found by cutting the module's linear layers in two and adding up what the halves give."""
    linear = {key: child for key, child in module.named_children() if is_linear(child)}
    if len(linear) < 2 or len(linear) > 4 or isinstance(module, nn.ModuleList):
        return None
    for row, last in linear.items():
        columns = [key for key in linear if key != row]
        inner, outer = in_features(last), out_features(last)
        outputs = {out_features(linear[key]) for key in columns}
        sections = {key: out_features(linear[key]) // inner for key in columns}
        if {in_features(linear[key]) for key in columns} != {outer} or any(size % inner for size in outputs):
            continue
        counts = tuple(count for count in HEADS if _whole_number(module, count))
        heads = max((_whole_number(module, count) for count in counts), default=0)
        sizes = (("heads", heads),) if heads else (("features", inner),)
        region = Region(name, tuple(sections.items()), (row,), counts, sizes)
        if region.fits(2) and _halves_add_up(module, region, outer):
            return region
    return None


def _halves_add_up(module: nn.Module, region: Region, width: int) -> bool:
    """Whether the two halves of a tiny run sum to the whole. Weights are random: the module may be on meta."""
    trial = copy.deepcopy(module).to_empty(device="cpu").float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.device("cpu"):
        for parameter in trial.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(1, parameter.shape[-1]) ** 0.5)
        x = torch.randn((2, TRIAL_TOKENS, width), generator=generator)
        try:
            expected = trial(x)
            parts = [_half(trial, region, part)(x) for part in range(2)]
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False  # it wants other arguments, or its shapes do not survive the cut
        if not isinstance(expected, Tensor) or expected.shape != x.shape:
            return False
        total = parts[0] + parts[1]
        agrees = bool((total - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-6))
    if agrees:
        log.info("a module can be divided", extra={"region": region.name, "rows": region.rows})
    return agrees


def _half(module: nn.Module, region: Region, part: int) -> nn.Module:
    """A copy of `module` that computes part `part` of two of its output."""
    cut = copy.deepcopy(module)
    for name, sections in region.columns:
        layer = cut.get_submodule(name)
        rows = torch.cat([s.chunk(2)[part] for s in torch.arange(out_features(layer)).chunk(sections)])
        _keep(layer, rows, outputs=True)
    for name in region.rows:
        layer = cut.get_submodule(name)
        _keep(layer, torch.arange(in_features(layer)).chunk(2)[part], outputs=False)
        if part and getattr(layer, "bias", None) is not None:
            layer.get_parameter("bias").data.zero_()
    for count in region.counts:
        setattr(cut, count, getattr(cut, count) // 2)
    return cut


def _keep(layer: nn.Module, indices: Tensor, *, outputs: bool) -> None:
    weight = layer.get_parameter("weight")
    dim = int(outputs == is_transposed(layer))
    layer.weight = nn.Parameter(weight.data.index_select(dim, indices))
    if outputs and getattr(layer, "bias", None) is not None:
        layer.bias = nn.Parameter(layer.get_parameter("bias").data[indices])
    if outputs and hasattr(layer, "nf"):
        vars(layer)["nf"] = len(indices)  # what Conv1D shapes its output by


def _head(model: nn.Module, embedding: nn.Embedding) -> str:
    """The module that turns hidden states into a score for each of the embedding's words; empty when there is none."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in LOGITS:
            tied = type(module).__name__ == "TiedHead"
            linear = isinstance(module, nn.Linear) and module.out_features == embedding.num_embeddings
            if tied or (linear and module.bias is None):
                return name
    return ""


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` computes, without its bias."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return x @ weight if is_transposed(layer) else F.linear(x, weight)
