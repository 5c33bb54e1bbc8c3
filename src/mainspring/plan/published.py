"""Published training runs as the cost model sees them: one row of a table becomes a model, a layout and a choice.

The columns are those of collected run tables: architecture (`L h heads kv ffn gated vocab seq`), machine (`gpu
n_gpus`), plan (`dp tp pp vpp cp ep zero mbs gbs recompute sp`), software (`flash dtype source note`) and what was
measured (`iter_s mem_gib`). A row that lacks what a prediction needs is refused with the reason.
"""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mainspring.plan.blocks import Cut, Rank
from mainspring.plan.estimate import Choice, Estimate, Estimator
from mainspring.plan.layout import Column, Layout
from mainspring.plan.network import Fabric
from mainspring.plan.stack import (
    DEEPSPEED_2021,
    FSDP_2023,
    FSDP_2024,
    MEGATRON_2021,
    MEGATRON_2024,
    MEGATRON_DEEPSPEED,
    Stack,
)
from mainspring.spec import BlockSpec, Device, Link, Mesh, ModelSpec, Recompute, Schedule, SpecError, Zero

Machine = Callable[[str], tuple[Device, Link]]
NODE_DEVICES = {"GH200": 4}  # others have 8
# One port per device, in GB/s, where a source does not say: HDR InfiniBand beside A100, NDR beside H100, Slingshot 11
# beside GH200.
PORT_GBPS = {"A100": 25.0, "H100": 50.0, "H200": 50.0, "GH200": 25.0, "B200": 50.0, "V100": 12.5}
INNER_GBPS = {"GH200": 150.0}  # a quad's NVLink between any two of its four, where a DGX has a switch
PER_NODE = re.compile(r"(\d+)\s*Gbps/node")
LAYERS = re.compile(r"layers/stage (\[[0-9, ]+\])")
RECOMPUTE: Mapping[str, Recompute] = {"none": "none", "selective": "selective", "full": "full", "sel-op": "selective"}


class Unmodelled(SpecError):
    """A row that the cost model does not speak about, and why."""


@dataclass(frozen=True, slots=True)
class Run:
    """A published run and its prediction's inputs. `memory_bytes` is 0 where none was published."""

    id: str
    source: str
    measured_s: float
    memory_bytes: float
    model: ModelSpec
    layout: Layout
    choice: Choice
    global_batch: int
    stack: Stack

    def predict(self) -> Estimate:
        """The cost model's answer."""
        estimator = Estimator(self.model, global_batch=self.global_batch, stack=self.stack)
        found = estimator(self.choice, self.layout)
        if found is None:
            raise Unmodelled(f"a batch of {self.global_batch} cannot be shared by {self.choice.mesh.label}")
        return found


def run_of(row: Mapping[str, str], machine: Machine) -> Run:
    """The run of one row. Raises `Unmodelled` for what the model leaves out, `SpecError` for a row that cannot be."""
    if "SUSPECT" in row["note"]:
        raise Unmodelled("the row is marked as suspect")
    if not _seconds(row):
        raise Unmodelled("no time was published")
    if "fp8" in row["dtype"].lower():
        raise Unmodelled("fp8 is no precision that plans are made for")
    if row["gpu"] == "mixed":
        raise Unmodelled("the table does not say the links between its mixed nodes")
    if _int(row, "ep") > 1:
        raise Unmodelled("the table has no columns for experts")
    if not _int(row, "mbs"):
        raise Unmodelled("the micro-batch is not known")
    device, inner = machine(row["gpu"])
    mesh, zero = _mesh(row)
    stack = _stack(row)
    cut = Cut(
        rows=_int(row, "mbs"),
        seq_len=_int(row, "seq"),
        precision="bf16",
        recompute=RECOMPUTE.get(row["recompute"], "none"),
        tp=mesh.tp,
        sequence_parallel=row["sp"] == "1",
        cp=mesh.cp,
        ep=mesh.ep,
    )
    chunks = max(1, _int(row, "vpp"))
    schedule: Schedule = "interleaved" if chunks > 1 else "1f1b"
    choice = Choice(mesh=mesh, cut=cut, zero=zero, schedule=schedule, cuts=_cuts(row, mesh.pp * chunks))
    rank = Rank(device=device, share=1.0, memory_bytes=device.memory_bytes)
    return Run(
        id=row["id"],
        source=row["source"],
        measured_s=_seconds(row),
        memory_bytes=_float(row, "mem_gib") * 1024**3,
        model=_model(row, stack),
        layout=Layout(
            columns=(Column(replicas=mesh.replicas, ranks=(rank,) * mesh.pp),), fabric=_fabric(row, inner=inner)
        ),
        choice=choice,
        global_batch=_int(row, "gbs"),
        stack=stack,
    )


def _int(row: Mapping[str, str], name: str) -> int:
    try:
        return int(row[name] or 0)
    except ValueError as error:
        raise SpecError(f"{name} of row {row['id']} is {row[name]!r}, which is no number") from error


def _float(row: Mapping[str, str], name: str) -> float:
    try:
        return float(row.get(name) or 0)
    except ValueError as error:
        raise SpecError(f"{name} of row {row['id']} is {row[name]!r}, which is no number") from error


def _seconds(row: Mapping[str, str]) -> float:
    """Of a step, from its time or from tokens per second and device; 0 where neither is given."""
    pace = _float(row, "tok_s_gpu") * _int(row, "n_gpus")
    return _float(row, "iter_s") or (_int(row, "gbs") * _int(row, "seq") / pace if pace else 0.0)


def _mesh(row: Mapping[str, str]) -> tuple[Mesh, Zero]:
    pp, tp, cp, ep = (max(1, _int(row, axis)) for axis in ("pp", "tp", "cp", "ep"))
    data, rest = divmod(_int(row, "n_gpus"), pp * tp * cp * ep)
    if rest or not data:
        raise SpecError(f"row {row['id']}: {row['n_gpus']} devices are no multiple of pp {pp} x tp {tp} x cp {cp}")
    hybrid = re.fullmatch(r"hsdp(\d+)", row["zero"])
    if hybrid:
        fsdp = int(hybrid[1])
        return Mesh(pp=pp, dp=data // fsdp, fsdp=fsdp, cp=cp, ep=ep, tp=tp), 3
    stages: Mapping[str, Zero] = {"": 0, "0": 0, "1": 1, "2": 2, "3": 3}
    if row["zero"] not in stages:
        raise Unmodelled(f"zero is {row['zero']!r}")
    zero = stages[row["zero"]] if data * cp > 1 else 0
    sharded = data if zero else 1
    return Mesh(pp=pp, dp=data // sharded, fsdp=sharded, cp=cp, ep=ep, tp=tp), zero


def _stack(row: Mapping[str, str]) -> Stack:
    """The software of a row: unfused attention is that of 2021, ZeRO-3 without tensor parallelism is FSDP's."""
    fused, zero = row["flash"] == "1", row["zero"]
    if not fused:
        said = f"{row['source']} {row['note']}".lower()
        eager = "sailor" in said or "megatron-deepspeed" in said
        stack = DEEPSPEED_2021 if zero == "3" else MEGATRON_DEEPSPEED if eager else MEGATRON_2021
    elif zero in ("", "0", "1"):
        stack = MEGATRON_2024
    else:
        stack = FSDP_2023 if "llm-foundry" in row["source"] else FSDP_2024
    if "compile" in row["note"]:
        stack = replace(stack, name=stack.name + " compiled", saved_passes=stack.compiled_passes)
    return stack


def _fabric(row: Mapping[str, str], *, inner: Link) -> Fabric:
    family = row["gpu"].split("-")[0]
    devices = min(NODE_DEVICES.get(family, 8), _int(row, "n_gpus"))
    said = PER_NODE.search(row["note"])
    gbps = int(said[1]) / 8 / devices if said else PORT_GBPS.get(family, 12.5)
    if family in INNER_GBPS:
        inner = Link(name="quad", bytes_per_s=INNER_GBPS[family] * 1e9, latency_s=inner.latency_s)
    outer = Link(name="port", bytes_per_s=gbps * 1e9, latency_s=6e-6)
    return Fabric(per_node=devices, inner=inner, outer=outer)


def _cuts(row: Mapping[str, str], stages: int) -> tuple[int, ...]:
    """Layers in equal shares, the remainder to the middle; the embedding is the first unit, the head the last."""
    layers = _int(row, "L")
    said = LAYERS.search(row["note"])
    if said:
        sizes = list(ast.literal_eval(said[1]))
        sizes[-1] += layers + 2 - sum(sizes)
    else:
        base, rest = divmod(layers, stages)
        start = (stages - rest + 1) // 2
        sizes = [base + (start <= stage < start + rest) for stage in range(stages)]
        sizes[0] += 1
        sizes[-1] += 1
    cuts = [0]
    for size in sizes:
        cuts.append(cuts[-1] + size)
    return tuple(cuts)


def _model(row: Mapping[str, str], stack: Stack) -> ModelSpec:
    """A decoder in two-byte values. Unfused attention computes both halves and keeps scores, weights and mask.

    Saved bytes are Korthikanti et al. 2022, section 4.1: of 34 bytes per token and hidden value 24 are divided by
    tensor parallelism, and 5 per token, head and position are the scores'.
    """
    layers, hidden, heads, kv, ffn, vocab, seq = (
        _int(row, name) for name in ("L", "h", "heads", "kv", "ffn", "vocab", "seq")
    )
    gated, shared = row["gated"] == "1", kv * hidden // heads
    matrices = hidden * (2 * hidden + 2 * shared) + (3 if gated else 2) * hidden * ffn
    divided = 4 * hidden + 4 * shared + 2 * (4 if gated else 2) * ffn
    rest = (10 if not stack.fused_attention else 12) * hidden
    scores = 0.0 if stack.fused_attention else 5.0 * heads * seq
    selective = float(divided + rest)
    if stack.fused_attention:  # the block's input, attention's output and the results of some matrix products
        results = 2.0 * (3 * hidden + 2 * shared + (2 if gated else 1) * ffn)
        selective = 4.0 * hidden + (1 - stack.selective_matmuls) * results
    layer = BlockSpec(
        name="layer",
        count=layers,
        params=matrices + 2 * hidden,
        flops_per_token=2.0 * matrices,
        attention_flops_per_token2=(2.0 if stack.fused_attention else 4.0) * hidden,
        activation_bytes_per_token=float(divided + rest) + scores,
        output_bytes_per_token=2.0 * hidden,
        divisions=(("heads", heads), ("kv_heads", kv), ("ffn", ffn)),
        split_params=matrices,
        split_activation_bytes_per_token=divided + scores,
        reductions=(2, 2),
        selective_bytes_per_token=selective,
        kv_bytes_per_token=4.0 * shared,
    )
    embedding, head = _ends(hidden, vocab)
    tied = 0 if gated else vocab * hidden
    return ModelSpec(
        name=row["model"],
        blocks=(embedding, layer, head),
        seq_len=seq,
        tied_params=tied,
        element_bytes=2,
        chain=True,
    )


def _ends(hidden: int, vocab: int) -> tuple[BlockSpec, BlockSpec]:
    """The table of words and the scores."""
    embedding = BlockSpec(
        name="embedding",
        count=1,
        params=vocab * hidden,
        flops_per_token=0.0,
        attention_flops_per_token2=0.0,
        activation_bytes_per_token=0.0,
        output_bytes_per_token=2.0 * hidden,
        divisions=(("vocab", vocab),),
        split_params=vocab * hidden,
        reductions=(1, 0),
    )
    head = replace(
        embedding,
        name="head",
        flops_per_token=2.0 * vocab * hidden,
        activation_bytes_per_token=4.0 * hidden,
        output_bytes_per_token=2.0 * vocab,
        reductions=(0, 1),
    )
    return embedding, head
