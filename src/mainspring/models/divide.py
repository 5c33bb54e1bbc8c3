"""Which modules tensor parallelism can divide, and how: a description that the profile counts by and training applies.

A region (Shoeybi et al. 2019, section 3) is a part of a model between a value that all ranks have and a sum of what
each of them computes: `columns` are divided by their outputs, `rows` by their inputs, and what lies between works on
each rank's heads or features alone. Known families are found by the names of their layers, any other module that
holds linear layers by a trial: its layers are cut in two, and if the halves add up to the whole, and their gradients
to the whole's, it is a region. A known one that can be run on a hidden state alone must pass the trial too.

A vocabulary is divided by its entries, in the embedding and in the head.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mainspring.models.structure import first_output, share_copy
from mainspring.models.trial import FAILURES, FEW, FewInputs, close, kind, on_host, tells, truths

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
FUSED = "GPT2Attention"  # whose queries, keys and values lie one after the other; others put those of a head together
TRIAL_TOKENS = 3


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
    seen: dict[object, Region | None] = {}
    for name, module in model.named_modules():
        if any(fnmatchcase(word, pattern) for word in (name, type(module).__name__) for pattern in whole):
            kept_under.append(name)
        kept = any(name == other or name.startswith(f"{other}.") for other in kept_under)
        inside = any(name.startswith(f"{other.name}.") for other in found)
        if kept or inside or not any(is_linear(child) for child in module.children()):
            continue
        likeness = kind(module)
        if likeness not in seen:
            seen[likeness] = _known(module) or _tried(module)
        region = seen[likeness]
        if region is not None:
            found.append(replace(region, name=name))
    return found


def vocabulary(model: nn.Module) -> Vocabulary | None:
    """The embedding and the head of a language model, when both can be divided by words.

    Neither may do more than look up or multiply, and no other module may have the table.
    """
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or last not in EMBEDDINGS or not _only_looks_up(module):
            continue
        head = _head(model, module)
        if head and not _shared(model, module, model.get_submodule(head)):
            return Vocabulary(embedding=name, head=head, size=module.num_embeddings)
    return None


def _only_looks_up(module: nn.Embedding) -> bool:
    changed = type(module).forward is not nn.Embedding.forward or "forward" in vars(module)
    return not (changed or module.sparse or module.scale_grad_by_freq or module.max_norm is not None)


def _shared(model: nn.Module, *ends: nn.Module) -> bool:
    """Whether a module other than `ends` has one of their parameters."""
    tables = {id(p) for end in ends for p in end.parameters(recurse=False)}
    others = (module for module in model.modules() if module not in ends)
    return any(id(p) in tables for module in others for p in module.parameters(recurse=False))


def is_linear(module: nn.Module | None) -> bool:
    """Whether `module` multiplies by one matrix and does nothing else: torch's, or GPT-2's in transformers."""
    if module is None or "forward" in vars(module) or "weight" not in module._parameters:  # noqa: SLF001
        return False
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


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


def _known(module: nn.Module) -> Region | None:
    linear = {key for key, child in module.named_children() if is_linear(child)}
    for columns, rows in FAMILIES:
        if linear == {*columns, *rows}:
            sizes = _sizes(module, columns, rows)
            counts = tuple(count for count in HEADS if _whole_number(module, count))
            region = Region("", tuple(columns.items()), rows, counts, sizes)
            return region if sizes and _holds(module, region) else None
    return None


def _holds(module: nn.Module, region: Region) -> bool:
    """Whether a module is what the names of its layers say."""
    degree = next((d for d in range(2, 1 + min(size for _, size in region.sizes)) if region.fits(d)), 0)
    shown = _parts_add_up(module, region, degree) if degree else None
    if shown is None:  # it cannot be run alone
        fused = any(matrices > 1 for _, matrices in region.columns)
        return not _cuts_more(module, region) and (not fused or type(module).__name__ == FUSED)
    return shown


def _cuts_more(module: nn.Module, region: Region) -> bool:
    """Whether a parameter beside the matrices has an entry for each head or feature, which no rank will need all of."""
    layers = {*(name for name, _ in region.columns), *region.rows}
    inner = {out_features(module.get_submodule(name)) // matrices for name, matrices in region.columns}
    counted = {size for _, size in region.sizes}
    width = next((w for attribute in WIDTHS if (w := _whole_number(module, attribute))), 0)
    rest = (p for name, p in module.named_parameters() if name.rpartition(".")[0] not in layers)
    return any(size in (inner | counted) - {1, width} for p in rest for size in p.shape)


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


def _tried(module: nn.Module) -> Region | None:
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
        region = Region("", tuple(sections.items()), (row,), counts, sizes)
        if region.fits(2) and _parts_add_up(module, region, 2, plain=True):
            log.info("a module can be divided", extra={"region": type(module).__name__, "rows": region.rows})
            return region
    return None


@dataclass(slots=True)
class _Result:
    """What a run gave: the output, what each row multiplied, and the gradients of what all ranks have whole."""

    output: Tensor
    sums: dict[str, Tensor]
    grads: tuple[Tensor | None, ...]


def _parts_add_up(module: nn.Module, region: Region, degree: int, *, plain: bool = False) -> bool | None:
    """Whether `degree` parts compute what the whole does, as training runs them; None when it wants other arguments.

    Each part gets the sum of all where its own product would be, and the gradients that it finds of the input and of
    what is not cut must be parts of the whole's. A `plain` module must return a tensor like the one it takes.
    """
    shown: bool | None = None
    for truth in truths(module):
        trial = on_host(module, truth=truth)
        generator = torch.Generator().manual_seed(1)
        width = in_features(trial.get_submodule(region.columns[0][0]))
        with torch.device("cpu"), torch.enable_grad(), FewInputs():
            x = torch.randn((2, TRIAL_TOKENS, width), generator=generator)
            try:
                whole = _run(trial, region, x, {}, plain=plain)
            except FAILURES:
                continue
            shown = shown or False
            if not tells(whole.output):
                continue
            try:
                found = [_run(_part(trial, region, place, degree), region, x, whole.sums) for place in range(degree)]
            except FAILURES:
                return False
        if not _agree(whole, found):
            return False
        shown = True
    return shown


def _run(module: nn.Module, region: Region, x: Tensor, sums: dict[str, Tensor], *, plain: bool = False) -> _Result:
    """Run `module` with `sums` in the place of what its rows give."""
    own: dict[str, Tensor] = {}

    def multiply(name: str, layer: nn.Module, given: Tensor) -> Tensor:
        assert name not in own, "a row must run once"
        own[name] = _tiled(layer, given)
        total = own[name] + (sums.get(name, own[name]) - own[name]).detach()
        return total if (bias := getattr(layer, "bias", None)) is None else total + bias

    x = x.clone().requires_grad_()
    layers = {*(name for name, _ in region.columns), *region.rows}
    rest = [p for name, p in module.named_parameters() if name.rpartition(".")[0] not in layers]
    wanted = [x, *(p.requires_grad_() for p in rest if p.is_floating_point())]
    for name in region.rows:
        layer = module.get_submodule(name)
        layer.forward = partial(multiply, name, layer)
    found = module(x)
    output = first_output(found)
    assert output is not None, "nothing to compare"
    assert own.keys() == set(region.rows), "every row must run"
    assert not plain or (output is found and output.shape == x.shape), "it hands on more, or something else"
    generator = torch.Generator().manual_seed(2)
    grads = torch.autograd.grad(output, wanted, torch.randn(output.shape, generator=generator), allow_unused=True)
    return _Result(output.detach(), {name: y.detach() for name, y in own.items()}, grads)


def _tiled(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` would give without its bias, if its outputs repeated the first few."""
    weight, outputs = layer.get_parameter("weight"), out_features(layer)
    few = x @ (weight[:, :FEW] if is_transposed(layer) else weight[:FEW].T)
    return few.repeat(*(1,) * (x.dim() - 1), -(-outputs // FEW))[..., :outputs]


def _agree(whole: _Result, parts: Sequence[_Result]) -> bool:
    if not all(close(part.output, whole.output) and part.sums.keys() == whole.sums.keys() for part in parts):
        return False
    if not all(close(_added([part.sums[name] for part in parts]), expected) for name, expected in whole.sums.items()):
        return False
    return all(
        close(_added([part.grads[place] for part in parts]), expected) for place, expected in enumerate(whole.grads)
    )


def _added(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.stack(found).sum(0) if found else None


def _part(module: nn.Module, region: Region, place: int, degree: int) -> nn.Module:
    """A copy of `module` that computes part number `place` of `degree` of its output."""
    cut = share_copy(module)
    for name, sections in region.columns:
        layer = cut.get_submodule(name)
        rows = torch.cat([s.chunk(degree)[place] for s in torch.arange(out_features(layer)).chunk(sections)])
        _keep(layer, rows, outputs=True)
    for name in region.rows:
        layer = cut.get_submodule(name)
        _keep(layer, torch.arange(in_features(layer)).chunk(degree)[place], outputs=False)
    for count in region.counts:
        setattr(cut, count, getattr(cut, count) // degree)
    return cut


def _keep(layer: nn.Module, indices: Tensor, *, outputs: bool) -> None:
    weight = layer.get_parameter("weight")
    dim = int(outputs == is_transposed(layer))
    first, count = int(indices[0]), len(indices)
    together = int(indices[-1]) - first + 1 == count  # then nothing need be copied
    kept = weight.data.narrow(dim, first, count) if together else weight.data.index_select(dim, indices)
    layer.weight = nn.Parameter(kept)
    if outputs and getattr(layer, "bias", None) is not None:
        layer.bias = nn.Parameter(layer.get_parameter("bias").data[indices])
    if outputs and hasattr(layer, "nf"):
        vars(layer)["nf"] = len(indices)  # what Conv1D shapes its output by


def _head(model: nn.Module, embedding: nn.Embedding) -> str:
    """The module that turns hidden states into a score for each of the embedding's words; empty when there is none."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in LOGITS:
            tied = type(module).__name__ == "TiedHead"
            plain = isinstance(module, nn.Linear) and is_linear(module) and module.bias is None
            if tied or (plain and module.out_features == embedding.num_embeddings):
                return name
    return ""


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` computes, without its bias."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return x @ weight if is_transposed(layer) else F.linear(x, weight)
