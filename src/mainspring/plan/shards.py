"""What a rank keeps of a block's parameters: its part under tensor and expert parallelism, and ZeRO's part of that.

ZeRO cuts every parameter along its first dimension (torch's `fully_shard`): each rank gets as many rows, the last ones
fewer or none, and what is stored and sent is filled up to the size of the first. So eight experts over twelve ranks
take the room of twelve.
"""

from collections.abc import Iterable

from mainspring.spec import BlockSpec, Rows, RowsKind


def rows_of(block: BlockSpec) -> tuple[Rows, ...]:
    """The rows of a block; of one that only numbers are known of, single values."""
    if block.rows:
        return block.rows
    divided = max(0, block.split_params - block.expert_params)
    sizes: dict[RowsKind, int] = {
        "rows": divided,
        "experts": block.expert_params,
        "partial": block.partial_params,
        "whole": block.params - divided - block.expert_params - block.partial_params,
    }
    return tuple(Rows(count=size, width=1, kind=kind) for kind, size in sizes.items() if size)


def divided(rows: Iterable[Rows], *, tp: int, ep: int) -> tuple[Rows, ...]:
    """Those of `rows` that one rank of `tp` and of `ep` has."""
    return tuple(_divided(each, tp=tp, ep=ep) for each in rows)


def _divided(rows: Rows, *, tp: int, ep: int) -> Rows:
    if rows.kind == "width":
        return Rows(count=rows.count, width=-(-rows.width // tp), kind=rows.kind, trained=rows.trained)
    parts = {"rows": tp, "experts": ep}.get(rows.kind, 1)
    return Rows(count=-(-rows.count // parts), width=rows.width, kind=rows.kind, trained=rows.trained)


def trained(rows: Iterable[Rows]) -> tuple[Rows, ...]:
    """Those of `rows` that have gradients."""
    return tuple(each for each in rows if each.trained)


def padded(rows: Iterable[Rows], shards: int) -> int:
    """Parameters that each of `shards` ranks has room for."""
    return sum(-(-each.count // shards) * each.width for each in rows)


def part(rows: Iterable[Rows], shards: int, index: int) -> int:
    """Parameters of rank `index` of `shards`."""
    total = 0
    for each in rows:
        most = -(-each.count // shards)
        total += min(most, max(0, each.count - index * most)) * each.width
    return total
