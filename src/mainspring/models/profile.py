"""What a model costs, block by block, for the planner: parameters, FLOPs, and the bytes backward keeps.

`profile_decoder` is closed form, so a 100-billion-parameter plan takes microseconds. A multiply-add is two FLOPs;
norms, rotations and activations are not counted (they are bound by bytes, not by arithmetic). Attention counts the
causal half that is computed: 2 N D per token and token of context, half of what PaLM's convention
(Chowdhery et al. 2022, appendix B) counts. `profile_module` measures any other module instead.

Letters as in `transformer`: H hidden, N query heads, K key/value heads, D head width, F feed-forward, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.models.divide import Region, is_transposed, regions, vocabulary
from mainspring.models.measure import Figures, measured
from mainspring.models.moe import Mixture
from mainspring.models.sequence import TOKENS, mixing
from mainspring.models.structure import Structure, first_output, ghost, outermost_entries, read_structure
from mainspring.spec import BlockSpec, DecoderConfig, ModelSpec, Precision, Rows, RowsKind, SpecError

VALUE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}


def profile_decoder(config: DecoderConfig, *, seq_len: int, name: str, precision: Precision = "fp32") -> ModelSpec:
    """The embedding, the layers and the head of `config`; activations are counted at `precision`.

    The head keeps its norm's input and result for backward; what the loss keeps of the logits is the planner's to add,
    from `output_bytes_per_token`.
    """
    hidden, vocab, value_bytes = config.hidden, config.vocab, VALUE_BYTES[precision]
    stream_bytes = float(hidden * value_bytes)
    embedding = BlockSpec(
        name="embedding",
        count=1,
        params=vocab * hidden,
        flops_per_token=0.0,
        attention_flops_per_token2=0.0,
        activation_bytes_per_token=0.0,
        output_bytes_per_token=stream_bytes,
        divisions=(("vocab", vocab),),
        split_params=vocab * hidden,
        reductions=(1, 0),
        rows=_rows([(vocab, hidden, "rows")]),
    )
    head = BlockSpec(
        name="head",
        count=1,
        params=vocab * hidden + hidden,
        flops_per_token=2.0 * vocab * hidden,
        attention_flops_per_token2=0.0,
        activation_bytes_per_token=2 * stream_bytes + 4,
        output_bytes_per_token=float(vocab * value_bytes),
        divisions=(("vocab", vocab),),
        split_params=vocab * hidden,
        reductions=(0, 1),
        rows=_rows([(vocab, hidden, "rows"), (hidden, 1, "whole")]),
    )
    return ModelSpec(
        name=name,
        blocks=(embedding, _layer(config, value_bytes), head),
        seq_len=seq_len,
        tied_params=vocab * hidden if config.tied else 0,
        element_bytes=value_bytes,
        chain=config.layers > 1,  # a single block cannot be cut off from others like it
        tied_rows=embedding.rows if config.tied else (),
    )


def _layer(config: DecoderConfig, value_bytes: int) -> BlockSpec:
    """One of the repeated layers.

    What backward keeps of it, in values per token: 4 H (of each norm its input and the result), 2 N D + 2 K D
    (queries, keys, values and attention's output), 4 F (gate, its activation, up, their product), with query/key
    norms another N D + K D; and one float32 per norm and head.
    """
    hidden, ffn = config.hidden, config.ffn
    inner, shared = config.heads * config.width, config.kv_heads * config.width
    matrices = hidden * (2 * inner + 2 * shared) + 3 * hidden * ffn
    vectors = 2 * hidden + config.qkv_bias * (inner + 2 * shared) + config.qk_norm * 2 * config.width
    kept = 4 * hidden + 4 * ffn + (2 + config.qk_norm) * (inner + shared)
    scales = 2 + config.heads + config.qk_norm * (config.heads + config.kv_heads)
    products = 3 * hidden + 2 * inner + 2 * shared + 2 * ffn  # its input, and what each matrix and attention give
    return BlockSpec(
        name="layer",
        count=config.layers,
        params=matrices + vectors,
        flops_per_token=2.0 * matrices,
        attention_flops_per_token2=2.0 * inner,
        activation_bytes_per_token=float(kept * value_bytes + 4 * scales),
        output_bytes_per_token=float(hidden * value_bytes),
        divisions=(("heads", config.heads), ("kv_heads", config.kv_heads), ("ffn", ffn)),
        split_params=matrices + config.qkv_bias * (inner + 2 * shared),
        split_activation_bytes_per_token=float((kept - 4 * hidden) * value_bytes + 4 * (scales - 2)),
        reductions=(2, 2),
        partial_params=config.qk_norm * 2 * config.width,
        selective_bytes_per_token=float(products * value_bytes + 4 * config.heads),
        kv_bytes_per_token=float(2 * shared * value_bytes),
        rows=_rows(
            [
                (inner, hidden + config.qkv_bias, "rows"),
                (shared, 2 * (hidden + config.qkv_bias), "rows"),
                (ffn, 2 * hidden, "rows"),
                (hidden, inner + ffn, "width"),
                (hidden, 2, "whole"),
                (config.width, 2 * config.qk_norm, "partial"),
            ]
        ),
    )


def _rows(tables: Iterable[tuple[int, int, RowsKind]], *, trained: bool = True) -> tuple[Rows, ...]:
    """Tables as `(count, width, kind)`, those that are cut alike side by side."""
    widths: Counter[tuple[int, RowsKind]] = Counter()
    for count, width, kind in tables:
        widths[count, kind] += width
    found = sorted(widths.items())
    return tuple(Rows(count=count, width=width, kind=kind, trained=trained) for (count, kind), width in found if width)


def profile_module(
    module: nn.Module, batch: tuple[Tensor, ...], *, name: str, seq_len: int | None = None, whole: Sequence[str] = ()
) -> ModelSpec:
    """Any module, measured on one forward pass of `batch`, both best on the meta device, where it costs nothing.

    Its chain of blocks (see `structure`) becomes the blocks of the profile, equal neighbours counted together, between
    what comes before and after; without a chain the entries of its lists of modules, in front of them the rest. A token
    is an entry of the leading two sizes of an integer batch (B, T), else a sample; `seq_len` says how many of a row are
    tokens when the row holds more. Modules that a pattern of `whole` names are none that tensor parallelism divides.
    """
    lead = batch[0]
    by_token = lead.dim() > 1 and not lead.is_floating_point()
    length = seq_len or (lead.shape[1] if by_token else 1)
    structure = read_structure(module, lambda model: _first(model(*batch)))
    names = structure.blocks or tuple(name for name, _ in outermost_entries(module))
    blocks = [module.get_submodule(each) for each in names]
    found = regions(module, whole=whole)
    with measured(
        module, blocks, [module.get_submodule(region.name) for region in found], chain=bool(structure.blocks)
    ) as measurement:
        module(*batch)
    figures = measurement.settle()
    last = figures[-1 if structure.blocks else 0]
    last.output_bytes = last.widest_bytes
    reader = _Reader(module, found, structure, tokens=lead.shape[0] * length)
    reader.mixed = _mixed(module, batch, structure, found, length=length) if by_token else set(structure.blocks)
    units = [reader.block(unit, each, names) for unit, each in enumerate(figures)]
    # A parameter that three units need is counted twice too often.
    tied = reader.rows(key for key in structure.shared for _ in range(structure.users(key) - 1))
    runs = [list(same) for _, same in groupby(units)]
    grouped = [replace(run[0], count=len(run)) for run in runs]
    return ModelSpec(
        name=name,
        blocks=tuple(grouped),
        seq_len=length,
        tied_params=sum(each.count * each.width for each in tied),
        chain=bool(structure.blocks),
        tied_rows=tied,
        unchained=structure.reason,
    )


def _mixed(
    module: nn.Module, batch: tuple[Tensor, ...], structure: Structure, found: Sequence[Region], *, length: int
) -> set[str]:
    """The blocks that must not be cut along the sequence. What a row holds beside its tokens, it always does."""
    if not structure.blocks or not found:
        return set(structure.blocks)
    row = torch.zeros((1, TOKENS + batch[0].shape[1] - length), dtype=batch[0].dtype, device="meta")
    rest = tuple(tensor.to("meta") for tensor in batch[1:])
    with torch.device("meta"):
        return set(mixing(ghost(module), lambda model: model(row, *rest), structure.blocks, found))


def _first(output: Any) -> Tensor:
    """The loss, or the first that a module returns; transformers' classes return something like a dictionary."""
    found = first_output(tuple(output.values()) if isinstance(output, Mapping) else output)
    if found is None:
        raise SpecError(f"the module returns {type(output).__name__}, expected a tensor or a tuple of them")
    return found


class _Reader:
    """Turns what was measured of the units of a module into blocks."""

    def __init__(self, module: nn.Module, found: Sequence[Region], structure: Structure, *, tokens: int) -> None:
        self._module = module
        self._regions = found
        self._structure = structure
        self._tokens = tokens
        self._vocabulary = vocabulary(module)
        self._parameters = dict(module.named_parameters())
        self._seen: set[str] = set()
        self._kinds: dict[int, RowsKind] = {}
        self.mixed: set[str] = set()
        for region in found:
            self._read_region(region)
        if self._vocabulary is not None:
            table = module.get_submodule(self._vocabulary.embedding).get_parameter("weight")
            head = module.get_submodule(self._vocabulary.head)
            self._kinds |= {id(p): "rows" for p in (table, *head.parameters(recurse=False))}
        mixtures = (each for each in module.modules() if isinstance(each, Mixture))
        self._kinds |= {id(p): "experts" for mixture in mixtures for p in mixture.experts.parameters()}

    def _read_region(self, region: Region) -> None:
        module = self._module.get_submodule(region.name)
        kinds: dict[int, RowsKind] = {id(p): "partial" for p in module.parameters()}
        for name in (*(name for name, _ in region.columns), *region.rows):
            layer = module.get_submodule(name)
            outputs: RowsKind = "width" if is_transposed(layer) else "rows"
            inputs: RowsKind = "rows" if is_transposed(layer) else "width"
            for key, p in layer.named_parameters():
                if name in region.rows:
                    kinds[id(p)] = inputs if key == "weight" else "whole"
                else:
                    kinds[id(p)] = outputs if key == "weight" else "rows"
        self._kinds |= kinds

    def block(self, unit: int, figures: Figures, names: Sequence[str]) -> BlockSpec:
        """Unit number `unit`; a block if it is one of `names`."""
        last = len(names) + 1
        needs = self._needs(unit, names)
        spec = BlockSpec(
            name=self._name(unit, names),
            count=1,
            params=sum(self._parameters[key].numel() for key in needs),
            flops_per_token=figures.flops / self._tokens,
            attention_flops_per_token2=figures.attention_flops / self._tokens / max(1, figures.keys),
            activation_bytes_per_token=figures.kept_bytes / self._tokens,
            output_bytes_per_token=figures.output_bytes / self._tokens,
            selective_bytes_per_token=figures.selective_bytes / self._tokens if 0 < unit < last else 0.0,
            kv_bytes_per_token=figures.kv_bytes / self._tokens,
            rows=self.rows(needs),
        )
        if 0 < unit < last:
            spec = replace(spec, along_sequence=names[unit - 1] not in self.mixed)
            return self._divided(self._expert(spec, names[unit - 1]), figures, names[unit - 1])
        return self._words(spec, unit)

    def rows(self, keys: Iterable[str]) -> tuple[Rows, ...]:
        """How parameters can be cut, those that are trained first."""
        found: dict[bool, list[tuple[int, int, RowsKind]]] = {True: [], False: []}
        for p in (self._parameters[key] for key in keys):
            if p.dim():
                found[p.requires_grad].append((len(p), p[:1].numel(), self._kinds.get(id(p), "whole")))
        return (*_rows(found[True]), *_rows(found[False], trained=False))

    def _needs(self, unit: int, names: Sequence[str]) -> list[str]:
        """The parameters of a unit; without a chain each parameter belongs to the first unit that has it."""
        if self._structure.blocks:
            return sorted(self._structure.needs[unit])
        if unit:
            owned = {id(p) for p in self._module.get_submodule(names[unit - 1]).parameters()}
        else:
            inside = {id(p) for name in names for p in self._module.get_submodule(name).parameters()}
            owned = {id(p) for p in self._parameters.values()} - inside
        found = [key for key, p in self._parameters.items() if id(p) in owned and key not in self._seen]
        self._seen.update(found)
        return found

    def _name(self, unit: int, names: Sequence[str]) -> str:
        if 0 < unit <= len(names):
            return type(self._module.get_submodule(names[unit - 1])).__name__
        if not self._structure.blocks:
            return "rest"
        if self._vocabulary is None:
            return "head" if unit else "stem"
        return "head" if unit else "embedding"

    def _divided(self, spec: BlockSpec, figures: Figures, name: str) -> BlockSpec:
        """What tensor parallelism divides of a block."""
        here = [region for region in self._regions if region.name == name or region.name.startswith(f"{name}.")]
        if not here:
            return spec
        return replace(
            spec,
            divisions=tuple(dict(size for region in here for size in region.sizes).items()),
            split_params=sum(self._split_params(region) for region in here),
            split_activation_bytes_per_token=figures.split_bytes / self._tokens,
            reductions=(len(here), len(here)),
            partial_params=sum(self._partial_params(region) for region in here),
        )

    def _split_params(self, region: Region) -> int:
        module, total = self._module.get_submodule(region.name), 0
        for column, _ in region.columns:
            total += sum(p.numel() for p in module.get_submodule(column).parameters())
        return total + sum(module.get_submodule(row).get_parameter("weight").numel() for row in region.rows)

    def _partial_params(self, region: Region) -> int:
        """What a region holds besides its matrices: all ranks have it, and each finds a part of its gradient."""
        module = self._module.get_submodule(region.name)
        layers = {*(name for name, _ in region.columns), *region.rows}
        return sum(p.numel() for key, p in module.named_parameters() if key.rpartition(".")[0] not in layers)

    def _words(self, spec: BlockSpec, unit: int) -> BlockSpec:
        """The embedding or the head, of which the table of words is divided."""
        if self._vocabulary is None or not self._structure.blocks:
            return spec
        table = self._module.get_submodule(self._vocabulary.embedding).get_parameter("weight").numel()
        sizes = (("vocab", self._vocabulary.size),)
        return replace(spec, divisions=sizes, split_params=table, reductions=(0, 1) if unit else (1, 0))

    def _expert(self, spec: BlockSpec, name: str) -> BlockSpec:
        """The experts of a block, if it has any."""
        for module in self._module.get_submodule(name).modules():
            if isinstance(module, Mixture):
                return replace(
                    spec,
                    experts=module.config.experts,
                    experts_per_token=module.config.experts_per_token,
                    expert_params=sum(p.numel() for p in module.experts.parameters()),
                )
        return spec
