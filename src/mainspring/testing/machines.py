"""Round-figure decoders, devices and clusters, so that planning is tested without a probe or a framework."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mainspring.plan.shards import rows_of
from mainspring.spec import BlockSpec, Cluster, Device, Link, ModelSpec, Node, Rows

GIB = 1024**3


def build_model(
    *, layers: int = 4, hidden: int = 256, vocab: int = 1000, gated: bool = True, experts: int = 0
) -> ModelSpec:
    """A Llama-like decoder with heads 64 wide and an untied head, in closed form; with `experts`, two for a token."""
    ffn = 4 * hidden
    forward = (3 if gated else 2) * hidden * ffn
    weights = 4 * hidden * hidden + (3 if gated else 2) * hidden * ffn
    blocks = (
        _block("embedding", 1, params=vocab * hidden, flops=0, attention=0, saved=0, output=hidden),
        _block(
            "layer",
            layers,
            params=weights + 2 * hidden,
            flops=2 * weights,
            attention=2 * hidden,
            saved=10 * hidden + 4 * ffn,
            output=hidden,
        ),
        _block(
            "head",
            1,
            params=vocab * hidden,
            flops=2 * vocab * hidden,
            attention=0,
            saved=3 * hidden,
            output=vocab,
        ),
    )
    wide = {"divisions": (("vocab", vocab),), "split_params": vocab * hidden}
    divided = (
        replace(blocks[0], **wide, reductions=(1, 0)),
        replace(
            blocks[1],
            params=blocks[1].params + max(0, experts - 1) * forward,
            flops_per_token=blocks[1].flops_per_token + (2.0 * forward if experts else 0.0),
            divisions=(("heads", hidden // 64), ("ffn", ffn)),
            split_params=weights + max(0, experts - 1) * forward,
            split_activation_bytes_per_token=4.0 * (4 * hidden + 4 * ffn),
            reductions=(2, 2),
            selective_bytes_per_token=4.0 * (6 * hidden + 2 * ffn),
            kv_bytes_per_token=8.0 * hidden,
            experts=experts,
            experts_per_token=2 if experts else 0,
            expert_params=experts * forward,
        ),
        replace(blocks[2], **wide, reductions=(0, 1)),
    )
    return ModelSpec(name="toy", blocks=divided, seq_len=128, chain=True)


def freeze(model: ModelSpec, *shares: float) -> ModelSpec:
    """`model` with shares of its blocks' parameters frozen: of all tables of a block as many of the rows."""

    def parted(rows: Rows, share: float) -> Iterator[Rows]:
        frozen = round(share * rows.count)
        parts = (replace(rows, count=rows.count - frozen), replace(rows, count=frozen, trained=False))
        return (part for part in parts if part.count)

    def frozen(block: BlockSpec, share: float) -> BlockSpec:
        return replace(block, rows=tuple(part for rows in rows_of(block) for part in parted(rows, share)))

    return replace(model, blocks=tuple(frozen(*each) for each in zip(model.blocks, shares, strict=True)))


def _block(name: str, count: int, *, params: int, flops: float, attention: float, saved: int, output: int) -> BlockSpec:
    return BlockSpec(
        name=name,
        count=count,
        params=params,
        flops_per_token=flops,
        attention_flops_per_token2=attention,
        activation_bytes_per_token=4.0 * saved,
        output_bytes_per_token=4.0 * output,
    )


def build_device(name: str = "X1", **figures: float) -> Device:
    """An accelerator of 100 TFLOP/s, 1 TB/s and 16 GiB unless told otherwise."""
    values: dict[str, Any] = {
        "vendor": "nvidia",
        "name": name,
        "memory_bytes": 16 * GIB,
        "memory_bytes_per_s": 1e12,
        "fp32_flops_per_s": 2e13,
        "bf16_flops_per_s": 1e14,
        "int8_ops_per_s": 2e14,
        "power_watts": 300.0,
        **figures,
    }
    return Device(**values)


def build_cluster(*devices: tuple[Device, int, int], link_gbps: float = 100.0, network_gbps: float = 10.0) -> Cluster:
    """`(device, per node, nodes)` for each kind; speeds in GB/s."""
    link = Link(name="link", bytes_per_s=link_gbps * 1e9, latency_s=5e-6)
    nodes = [
        Node(name=f"{device.name}-{index}", devices=(device,) * each, link=link, cpu_cores=8, memory_bytes=64 * GIB)
        for device, each, count in devices
        for index in range(count)
    ]
    network = Link(name="network", bytes_per_s=network_gbps * 1e9, latency_s=2e-5)
    return Cluster(name="c", nodes=tuple(nodes), link=network)
