"""A plan as one HTML page that needs nothing else: what it is, the pipeline's timeline, and memory as bars.

Drawn as SVG in the page, readable without scripts; colours follow the reader's light or dark setting.
"""

from collections.abc import Iterator
from html import escape

from mainspring.plan.explain import Explanation, StageShare, explain, steps_of
from mainspring.plan.simulate import Span
from mainspring.spec import Plan
from mainspring.spec.plan import readable_bytes

WIDTH, ROW, LABEL = 1000, 22, 90
PARTS = {
    "params": "parameters",
    "grads": "gradients",
    "optimizer": "optimiser",
    "activations": "activations",
    "logits": "logits",
    "gathered": "gathered",
    "runtime": "runtime",
}
STYLE = """
:root { color-scheme: light dark; font: 14px/1.5 system-ui, sans-serif; }
body { max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
pre { white-space: pre-wrap; padding: 1rem; border: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 11px; }
.F { fill: #4c8bf5; } .B { fill: #f5934c; } .W { fill: #58b368; }
.params { fill: #4c8bf5; } .grads { fill: #f5934c; } .optimizer { fill: #8e6cc9; } .activations { fill: #58b368; }
.logits { fill: #d6589f; } .gathered { fill: #c9b458; } .runtime { fill: #888; }
.limit { stroke: #d33; stroke-dasharray: 4 3; } .key { display: inline-block; width: .8em; height: .8em; }
"""


def page(plan: Plan) -> str:
    """The page of `plan`."""
    found = explain(plan)
    title = f"{plan.model} on {plan.cluster}: {plan.mesh.label}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1><pre>{escape(str(plan))}</pre>",
        f"<p><b>What limits a step.</b> {escape(found.bottleneck)}. {escape(found.advice)}.</p>",
        *_timeline(plan),
        *_memory(plan, found),
        *_traffic(found),
        "</html>",
    ]
    return "\n".join(parts)


def _timeline(plan: Plan) -> Iterator[str]:
    spans = steps_of(plan)
    if not spans:
        return
    end_s = max(span.end_s for span in spans)
    shown = 1 + max(span.microbatch for span in spans)
    yield f"<h2>Pipeline</h2><p>The first {shown} of {max(plan.microbatches)} micro-batches, {end_s:.3g} s. "
    yield " ".join(_key(kind, word) for kind, word in (("F", "forward"), ("B", "backward"), ("W", "weight gradients")))
    height = ROW * plan.mesh.pp + 20
    yield f'</p><svg viewBox="0 0 {WIDTH + LABEL} {height}" role="img" aria-label="pipeline timeline">'
    for rank in range(plan.mesh.pp):
        yield f'<text x="0" y="{ROW * rank + 15}">rank {rank}</text>'
    yield from (_bar(span, end_s) for span in spans)
    yield "</svg>"


def _bar(span: Span, end_s: float) -> str:
    x, width = LABEL + WIDTH * span.start_s / end_s, WIDTH * (span.end_s - span.start_s) / end_s
    said = f"{span.kind} of stage {span.stage}, micro-batch {span.microbatch}: {span.start_s:.4g} to {span.end_s:.4g} s"
    return (
        f'<rect class="{span.kind}" x="{x:.2f}" y="{ROW * span.rank + 2}" width="{max(0.3, width - 0.5):.2f}" '
        f'height="{ROW - 4}"><title>{said}</title></rect>'
    )


def _memory(plan: Plan, found: Explanation) -> Iterator[str]:
    by_rank: dict[int, list[StageShare]] = {}
    for stage in found.stages:
        by_rank.setdefault(stage.pipeline_rank, []).append(stage)
    totals = {rank: sum(s.memory.total_bytes for s in stages) for rank, stages in by_rank.items()}
    scale = WIDTH / max(plan.device_memory_bytes, *totals.values())
    yield "<h2>Memory</h2><p>" + " ".join(_key(name, word) for name, word in PARTS.items()) + "</p>"
    yield f'<svg viewBox="0 0 {WIDTH + LABEL} {ROW * len(by_rank) + 20}" role="img" aria-label="memory by rank">'
    for row, rank in enumerate(sorted(by_rank)):
        yield f'<text x="0" y="{ROW * row + 15}">rank {rank}</text>'
        at = float(LABEL)
        for name, word in PARTS.items():
            size = sum(getattr(stage.memory, f"{name}_bytes") for stage in by_rank[rank])
            if size:
                yield (
                    f'<rect class="{name}" x="{at:.2f}" y="{ROW * row + 2}" width="{size * scale:.2f}" '
                    f'height="{ROW - 4}"><title>{word}: {readable_bytes(size)}</title></rect>'
                )
                at += size * scale
    limit = LABEL + plan.device_memory_bytes * scale
    yield f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="0" y2="{ROW * len(by_rank)}"/>'
    said = f"a device has {readable_bytes(plan.device_memory_bytes)}"
    yield f'<text x="{LABEL}" y="{ROW * len(by_rank) + 14}">{said}</text>'
    yield "</svg>"


def _traffic(found: Explanation) -> Iterator[str]:
    if not found.traffic:
        return
    yield "<h2>Communication</h2><table><tr><th>axis<th>operation<th>ranks<th>calls<th>bytes<th>seconds</tr>"
    for each in found.traffic:
        cells = (
            each.axis,
            each.operation,
            str(each.group_ranks),
            f"{each.messages:,}",
            readable_bytes(each.payload_bytes),
            f"{each.seconds:.3g}",
        )
        yield "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>"
    yield "</table>"


def _key(name: str, word: str) -> str:
    return f'<svg class="key" viewBox="0 0 10 10"><rect class="{name}" width="10" height="10"/></svg> {word}'
