"""A plan as one HTML page that needs nothing else: what it is, the pipeline's timeline, and memory as bars.

Drawn as SVG in the page, readable without scripts; colours follow the reader's light or dark setting.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from mainspring.plan.explain import Explanation, StageShare, explain, steps_of
from mainspring.plan.simulate import Span
from mainspring.spec import Plan
from mainspring.spec.plan import readable_bytes

WIDTH, ROW, LABEL, MARGIN = 1000, 22, 150, 110
LETTER = 7  # the width of one in a label, at most
TICKS = 5
PARTS = {
    "params": "parameters",
    "grads": "gradients",
    "optimizer": "optimiser",
    "activations": "activations",
    "logits": "logits",
    "gathered": "gathered",
    "runtime": "runtime",
}
PASSES = {"F": "forward", "B": "backward", "W": "weight gradients"}
STYLE = """
:root { color-scheme: light dark; font: 14px/1.5 system-ui, sans-serif; }
body { max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
pre { white-space: pre-wrap; padding: 1rem; border: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
.wide { overflow-x: auto; } svg.chart { width: 100%; min-width: 720px; height: auto; }
svg text { fill: currentColor; font-size: 11px; }
svg text.end { text-anchor: end; } svg text.mid { text-anchor: middle; }
.F { fill: #4c8bf5; } .B { fill: #f5934c; } .W { fill: #58b368; } .later { opacity: .65; }
.params { fill: #4c8bf5; } .grads { fill: #f5934c; } .optimizer { fill: #8e6cc9; } .activations { fill: #58b368; }
.logits { fill: #d6589f; } .gathered { fill: #c9b458; } .runtime { fill: #888; }
.limit { stroke: #d33; stroke-width: 2; } .grid { stroke: currentColor; opacity: .15; }
.key { display: inline-block; width: .8em; height: .8em; }
"""


def page(plan: Plan) -> str:
    """The page of `plan`."""
    found = explain(plan)
    title = f"{plan.model} on {plan.cluster}: {plan.mesh.label}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1><pre>{escape(str(plan))}</pre>",
        f"<p><b>What limits a step.</b> {escape(_sentence(found.bottleneck))} {escape(_sentence(found.advice))}</p>",
        *(f"<p>{escape(_sentence(note))}</p>" for note in found.notes),
        *_timeline(plan, found),
        *_memory(found),
        *_stages(found),
        *_traffic(found),
        "</html>",
    ]
    return "\n".join(parts)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _timeline(plan: Plan, found: Explanation) -> Iterator[str]:
    """One chart for each kind of replica, all to one scale."""
    drawn = [(replica, steps_of(plan, replica)) for replica in dict.fromkeys(s.replica for s in found.stages)]
    drawn = [(replica, spans) for replica, spans in drawn if spans]
    if not drawn:
        return
    end_s = max(span.end_s for _, spans in drawn for span in spans)
    kinds = {span.kind for _, spans in drawn for span in spans}
    yield "<h2>Pipeline</h2><p>"
    if len(plan.stages) > plan.mesh.pp:
        yield "A rank's later stages are paler. "
    yield " ".join(_key(kind, word) for kind, word in PASSES.items() if kind in kinds) + "</p>"
    for replica, spans in drawn:
        mine = {share.pipeline_rank: share for share in found.stages if share.replica == replica}
        yield f"<p>{escape(_shown(plan, mine, spans))}</p>"
        yield from _chart(plan, mine, spans, end_s=end_s, left=_margin(found))


def _shown(plan: Plan, mine: Mapping[int, StageShare], spans: Sequence[Span]) -> str:
    """Which passes a chart shows, and of whom."""
    replicas, count = mine[0].replicas, mine[0].microbatches
    devices = " | ".join(dict.fromkeys(mine[rank].device for rank in range(plan.mesh.pp)))
    who = f"slowest of {replicas} replicas" if replicas > 1 else "replica"
    end_s, shown = max(span.end_s for span in spans), 1 + max(span.microbatch for span in spans)
    some = f"first {shown} of {count}" if shown < count else f"{count}" if count > 1 else "one"
    return f"The {who} on {devices}: its {some} micro-batch{'es' if count > 1 else ''}, {end_s:.3g} s."


def _chart(
    plan: Plan, mine: Mapping[int, StageShare], spans: Sequence[Span], *, end_s: float, left: int
) -> Iterator[str]:
    """The passes of one replica: a row for each of its pipeline ranks."""
    height, own_s = ROW * plan.mesh.pp, max(span.end_s for span in spans)
    yield f'<div class="wide"><svg class="chart" viewBox="0 0 {left + WIDTH + MARGIN} {height + 20}" role="img" '
    yield 'aria-label="pipeline timeline">'
    for tick in range(TICKS + 1):
        x = left + WIDTH * tick / TICKS
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>'
        yield f'<text class="mid" x="{x:.1f}" y="{height + 14}">{end_s * tick / TICKS:.3g} s</text>'
    for rank in range(plan.mesh.pp):
        busy = sum(span.end_s - span.start_s for span in spans if span.rank == rank)
        yield f'<text x="0" y="{ROW * rank + 15}">{escape(_rank_label(mine[rank]))}</text>'
        yield f'<text class="end" x="{left + WIDTH + MARGIN}" y="{ROW * rank + 15}">{busy / own_s:.0%} busy</text>'
    yield from (_bar(span, end_s, plan.mesh.pp, left) for span in spans)
    yield "</svg></div>"


def _rank_label(share: StageShare) -> str:
    return f"{share.pipeline_rank}  {share.device}"


def _margin(found: Explanation) -> int:
    """Room for the longest label left of the bars."""
    return max(LABEL, *(LETTER * len(_rank_label(share)) for share in found.stages))


def _bar(span: Span, end_s: float, ranks: int, left: int) -> str:
    x, width = left + WIDTH * span.start_s / end_s, WIDTH * (span.end_s - span.start_s) / end_s
    said = f"{PASSES[span.kind]} of stage {span.stage}, micro-batch {span.microbatch}: "
    said += f"{span.start_s:.4g} to {span.end_s:.4g} s"
    later = " later" if span.stage >= ranks else ""
    return (
        f'<rect class="{span.kind}{later}" x="{x:.2f}" y="{ROW * span.rank + 2}" width="{max(0.3, width - 0.5):.2f}" '
        f'height="{ROW - 4}"><title>{said}</title></rect>'
    )


def _memory(found: Explanation) -> Iterator[str]:
    """A bar for each pipeline rank of each kind of replica."""
    by_rank: dict[tuple[int, int], list[StageShare]] = {}
    for stage in sorted(found.stages, key=lambda stage: (stage.replica, stage.pipeline_rank)):
        by_rank.setdefault((stage.replica, stage.pipeline_rank), []).append(stage)
    totals = [sum(s.memory.total_bytes for s in stages) for stages in by_rank.values()]
    most = max(*(s.device_memory_bytes for s in found.stages), *totals, 1)
    scale = WIDTH / most
    used = [name for name in PARTS if any(getattr(s.memory, f"{name}_bytes") for s in found.stages)]
    yield "<h2>Memory</h2><p>The fullest device of each pipeline rank; the red line is what it has. "
    yield " ".join(_key(name, PARTS[name]) for name in used) + "</p>"
    left = _margin(found)
    box = f"0 0 {left + WIDTH + MARGIN} {ROW * len(by_rank) + 20}"
    yield f'<div class="wide"><svg class="chart" viewBox="{box}" role="img" '
    yield 'aria-label="memory by rank">'
    for row, (stages, total) in enumerate(zip(by_rank.values(), totals, strict=True)):
        yield f'<text x="0" y="{ROW * row + 15}">{escape(_rank_label(stages[0]))}</text>'
        at = float(left)
        for name in used:
            size = sum(getattr(stage.memory, f"{name}_bytes") for stage in stages)
            if size:
                yield (
                    f'<rect class="{name}" x="{at:.2f}" y="{ROW * row + 2}" width="{size * scale:.2f}" '
                    f'height="{ROW - 4}"><title>{PARTS[name]}: {readable_bytes(size)}</title></rect>'
                )
                at += size * scale
        room = stages[0].device_memory_bytes
        x = left + room * scale
        yield f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{ROW * row}" y2="{ROW * (row + 1)}"/>'
        share = f"{total / max(1, room):.0%} of {readable_bytes(room)}"
        yield f'<text class="end" x="{left + WIDTH + MARGIN}" y="{ROW * row + 15}">{share}</text>'
    yield "</svg></div>"


def _stages(found: Explanation) -> Iterator[str]:
    """Where the busiest rank's step goes, and the stages."""
    steps = [(part.what, f"{part.seconds:.3g} s") for part in found.parts if part.seconds]
    whose = f"pipeline rank {found.busiest_rank} of replica {found.slowest_replica}"
    yield f"<h2>Step</h2><p>Of {whose}, which others wait for.</p>"
    yield from _table(("part", "seconds"), steps)
    rows = [
        (
            f"{s.stage}",
            f"{s.pipeline_rank}",
            s.device,
            f"{s.replicas}",
            f"{s.microbatches}",
            f"{s.blocks}",
            s.recompute,
            f"{s.forward_s:.3g} s",
            f"{s.backward_s:.3g} s",
            f"{s.send_s:.3g} s",
            f"{readable_bytes(s.memory.total_bytes)} of {readable_bytes(s.device_memory_bytes)}",
        )
        for s in found.stages
    ]
    yield "<h2>Stages</h2>"
    what = ("stage", "rank", "device", "replicas", "micro-batches", "blocks", "recompute")
    yield from _table((*what, "forward", "backward", "sending", "memory"), rows)


def _traffic(found: Explanation) -> Iterator[str]:
    if not found.traffic:
        return
    yield "<h2>Communication</h2>"
    rows = [
        (
            each.axis,
            each.operation,
            str(each.group_ranks),
            f"{each.messages:,}",
            readable_bytes(each.payload_bytes),
            f"{each.seconds:.3g}",
            f"{each.exposed_s:.3g}",
        )
        for each in found.traffic
    ]
    yield from _table(("axis", "operation", "ranks", "calls", "bytes", "seconds", "not hidden"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield '<div class="wide"><table><tr>' + "".join(f"<th>{word}" for word in head) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) + "</tr>"
    yield "</table></div>"


def _key(name: str, word: str) -> str:
    return f'<svg class="key" viewBox="0 0 10 10"><rect class="{name}" width="10" height="10"/></svg> {word}'
