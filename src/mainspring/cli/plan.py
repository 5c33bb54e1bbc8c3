"""`mainspring plan`: how a recipe would run, before spending anything, and how good such answers are."""

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mainspring.cli.completion import refs
from mainspring.cli.output import print_json, print_table, size
from mainspring.cli.session import AsJson, Overrides, local_workspace_of, workspace_of
from mainspring.cli.wishes import wishes
from mainspring.spec import Objective, Plan, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mainspring.plan.explain import Explanation
    from mainspring.plan.validate import Validation
    from mainspring.spec import Calibration
    from mainspring.train.dryrun import DryRun

Ranks = Annotated[int | None, typer.Option(help="How many ranks; as many as pay off by default.", min=1)]
ClusterPath = Annotated[str, typer.Option(help="Plan for the machines of this file.")]
Optimize = Annotated[Objective, typer.Option(help="What the plan shall spend least of.")]
PlanFile = Annotated[str, typer.Argument(help="A plan saved with --json, or a recipe.")]


SHAPES_SHOWN = 12


class RecipeOrVerb(TyperGroup):
    """A group whose first word is a recipe unless it is one of its verbs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the verb that plans a recipe where none is named."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            if near and not Path(args[0]).exists():
                ctx.fail(f"no verb and no recipe {args[0]!r}, did you mean {near[0]}?")
            args = ["recipe", *args]
        return super().parse_args(ctx, args)


verbs = typer.Typer(
    cls=RecipeOrVerb,
    help="Show how RECIPE would run, before spending anything: mainspring plan RECIPE. Explain and compare plans.",
    no_args_is_help=True,
)


def add_to(cli: typer.Typer) -> None:
    """Register the group."""
    cli.add_typer(verbs, name="plan")


@verbs.command("recipe", epilog="Example: mainspring plan recipe.py --optimize energy --cluster cluster.toml")
def plan(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A Python file that defines `recipe`.")],
    data: Annotated[str, typer.Option(help="Dataset or tokens, e.g. dataset:handbook.", autocompletion=refs())] = "",
    optimize: Optimize = "time",
    ranks: Ranks = None,
    cluster: ClusterPath = "",
    overrides: Overrides = None,
    menu: Annotated[
        bool, typer.Option("--menu", help="One plan for each number of ranks that may be offered.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show mesh, memory, time, energy and price of training RECIPE, and which alternatives lost.

    -s sets numbers of the recipe, and what the plan must be: -s tp=2 -s schedule=1f1b -s recompute=full.
    """
    if menu and ranks:
        raise SpecError("--menu makes a plan for every number of ranks", hint="leave --ranks out, or --menu")
    workspace, chosen = workspace_of(context), wishes(overrides)
    if menu:
        plans = workspace.menu(recipe, data=data, optimize=optimize, cluster=cluster, overrides=chosen)
        print_json(plans) if as_json else print_menu(plans)
        return
    found = workspace.plan(recipe, data=data, optimize=optimize, ranks=ranks, cluster=cluster, overrides=chosen)
    if as_json:
        print_json(found)
    else:
        print(found)


@verbs.command("explain", epilog="Example: mainspring plan explain plan.json --html plan.html")
def explain(
    context: typer.Context,
    plan: PlanFile,
    data: Annotated[str, typer.Option(help="Dataset or tokens, e.g. dataset:handbook.", autocompletion=refs())] = "",
    optimize: Annotated[Objective | None, typer.Option(help="What the plan shall spend least of.")] = None,
    ranks: Ranks = None,
    cluster: ClusterPath = "",
    overrides: Overrides = None,
    html: Annotated[str, typer.Option(help="Write a page with timeline and memory bars to this file.")] = "",
    as_json: AsJson = False,
) -> None:
    """Break a plan's time and memory down by stage and collective, and say what limits it."""
    from mainspring.plan import explain as reasons
    from mainspring.plan.page import page

    asked = {"data": data, "optimize": optimize, "ranks": ranks, "cluster": cluster}
    asked["overrides"] = wishes(overrides)
    page_path = _writable(html) if html else None
    found = _plan_of(context, plan, **{name: value for name, value in asked.items() if value})
    if page_path:
        page_path.write_text(page(found), encoding="utf-8")
    told = reasons.explain(found)
    if as_json:
        print_json(told)
        return
    print(found)
    _print_explanation(told)


@verbs.command("diff", epilog="Example: mainspring plan diff before.json after.json")
def diff(context: typer.Context, first: PlanFile, second: PlanFile, as_json: AsJson = False) -> None:
    """Show what distinguishes two plans."""
    from mainspring.plan.explain import difference

    rows = difference(_plan_of(context, first), _plan_of(context, second))
    if as_json:
        print_json(rows)
    else:
        print_table(("", first, second), [(r.what, r.first, r.second) for r in rows], empty="the plans are the same")


@verbs.command("calibrate", epilog="Example: mainspring plan calibrate --json")
def calibrate(context: typer.Context, as_json: AsJson = False) -> None:
    """Measure this machine for about a minute; later plans use what is published as calibration:<machine>."""
    from mainspring.cli.follow import follow

    workspace = local_workspace_of(context)
    artifact = follow(workspace.calibrate(), quiet=as_json)
    found = workspace.calibration(artifact.ref)
    if as_json:
        print_json({"ref": artifact.ref, "mean_error": found.mean_error, "calibration": found})
    else:
        _print_calibration(artifact.ref, found)


@verbs.command("dryrun", epilog="Example: mainspring plan dryrun recipe.py --world 4096 --cluster cluster.toml")
def dryrun(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A Python file that defines `recipe`.")],
    world: Annotated[int, typer.Option(help="How many ranks, on as many machines as that takes.", min=0)] = 0,
    rank: Annotated[int, typer.Option(help="Which rank to try.", min=0)] = 0,
    plan: Annotated[str, typer.Option(help="Try this plan, saved with --json.")] = "",
    data: Annotated[str, typer.Option(help="Dataset or tokens, e.g. dataset:handbook.", autocompletion=refs())] = "",
    cluster: ClusterPath = "",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Try one rank of a plan on ranks that do not exist: the shapes it holds, and every collective with its bytes."""
    found = local_workspace_of(context).dry_run(
        recipe,
        world=world,
        rank=rank,
        plan=_plan_of(context, plan) if plan else None,
        data=data,
        cluster=cluster,
        overrides=wishes(overrides),
    )
    print_json(found) if as_json else _print_dry_run(found)


@verbs.command("validate", epilog="Example: mainspring plan validate runs.csv --json")
def validate(
    context: typer.Context,
    runs: Annotated[str, typer.Argument(help="A table of measured runs, as CSV.")],
    as_json: AsJson = False,
) -> None:
    """Compare the planner's predictions with measured runs: error by row, source and overall."""
    found = local_workspace_of(context).validate_plans(runs)
    print_json(found) if as_json else _print_validation(found)


def _plan_of(context: typer.Context, path: str, **asked: Any) -> Plan:
    """The plan in a JSON file, or that of a recipe with what was `asked`."""
    from mainspring.spec import NotFound
    from mainspring.store import parse

    if not path.endswith(".json"):
        return workspace_of(context).plan(path, **asked)
    if asked:
        options = ", ".join("-s" if name == "overrides" else f"--{name}" for name in asked)
        raise SpecError(
            f"{path} is a plan that was made, and {options} would have made another",
            hint=f"leave {options} out, or give the recipe instead of its plan",
        )
    if not Path(path).is_file():
        raise NotFound(f"no file {path}", hint="save one with `mainspring plan RECIPE --json > plan.json`")
    return parse.read_json(Path(path).read_bytes(), Plan, where=path)


def _writable(path: str) -> Path:
    """`path`, where a file may be written: known before anything is planned for it."""
    target = Path(path)
    if target.is_dir():
        raise SpecError(f"--html {path} is a folder", hint="name a file in it, e.g. plan.html")
    if not target.parent.is_dir():
        raise SpecError(f"--html {path}: there is no folder {target.parent}", hint="make it, or name another file")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise SpecError(f"--html {path} may not be written", hint="name a file in a folder of your own")
    return target


def _print_dry_run(found: "DryRun") -> None:
    mesh = found.plan.mesh
    print(str(found.plan).splitlines()[0])
    stages = ", ".join(map(str, found.stages))
    print(f"rank      {found.rank} of {mesh.world}, stages {stages}, tried in {found.seconds:.1f} s")
    print(f"holds     {size(found.held_bytes)} of parameters, {size(found.predicted_held_bytes)} predicted")
    print_table(
        ("parameter", "whole", "here"),
        [(h.name, _shape(h.whole), _shape(h.here)) for h in found.held[:SHAPES_SHOWN]],
        empty="no parameters",
    )
    if len(found.held) > SHAPES_SHOWN:
        print(f"          and {len(found.held) - SHAPES_SHOWN} more (--json has all)")
    print_table(
        ("operation", "ranks", "calls", "bytes", "predicted calls", "predicted bytes"),
        [
            (
                m.operation,
                m.group_ranks,
                m.messages,
                size(m.payload_bytes),
                m.predicted_messages,
                size(m.predicted_bytes),
            )
            for m in found.messages
        ],
        empty="no communication",
    )


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes)) or "1"


def print_menu(plans: "Sequence[Plan]") -> None:
    """A table with a line for each plan."""
    print_table(
        ("ranks", "plan", "state", "s a step", "tokens/s", "MFU", "memory a rank", "watts", "USD/h", "devices"),
        [
            (
                p.mesh.world,
                p.mesh.label,
                p.sharding,
                f"{p.time.step_s:.3g}",
                f"{p.tokens_per_s:,.0f}",
                f"{p.mfu:.0%}",
                size(p.memory.total_bytes),
                f"{p.watts:,.0f}",
                f"{p.price_usd_per_hour:.2f}",
                " | ".join(dict.fromkeys(stage.device for stage in p.stages)),
            )
            for p in plans
        ],
        drop=("USD/h", "watts", "state", "MFU"),
    )


def _print_calibration(ref: str, found: "Calibration") -> None:
    here, link = found.device, found.link
    print(f"device    {here.name}")
    print(
        f"rates     {here.fp32_flops_per_s * here.matmul_share / 1e9:,.0f} GFLOP/s in fp32 products, "
        f"{here.bf16_flops_per_s * here.matmul_share / 1e9:,.0f} in bf16, "
        f"{here.fp32_flops_per_s * here.attention_share / 1e9:,.0f} in attention; "
        f"memory {here.memory_bytes_per_s / 1e9:.1f} GB/s; {here.block_overhead_s * 1e6:,.0f} µs a block"
    )
    if link:
        rate, latency = f"{link.bytes_per_s / 1e9:.2f} GB/s", f"{link.latency_s * 1e6:,.0f} µs a message"
        print(f"link      {rate} among {found.ranks} ranks, {latency}")
    print_table(
        ("measured", "fitted", "error", "what"),
        [
            (f"{s.measured_s * 1e3:.3g} ms", f"{s.predicted_s * 1e3:.3g} ms", f"{s.error:+.0%}", s.what)
            for s in found.samples
        ],
    )
    print(f"published {ref}: mean error {found.mean_error:.0%}; plans for this machine now use these figures")


def _print_explanation(told: "Explanation") -> None:
    print(f"limit     {told.bottleneck}; {size(told.spare_bytes)} to spare on the fullest rank")
    print(f"advice    {told.advice}")
    for note in told.notes:
        print(f"note      {note}")
    spent = " + ".join(f"{part.what} {part.seconds:.3g}" for part in told.parts if part.seconds)
    print(
        f"step      {sum(part.seconds for part in told.parts):.3g} s of pipeline rank {told.busiest_rank} of replica "
        f"{told.slowest_replica}, which others wait for: {spent}"
    )
    print_table(
        (
            *("stage", "rank", "device", "replicas", "micro-batches", "blocks", "recompute"),
            *("forward", "backward", "sending", "memory", "of"),
        ),
        [
            (
                s.stage,
                s.pipeline_rank,
                s.device,
                s.replicas,
                s.microbatches,
                s.blocks,
                s.recompute,
                f"{s.forward_s:.3g} s",
                f"{s.backward_s:.3g} s",
                f"{s.send_s:.3g} s",
                size(s.memory.total_bytes),
                size(s.device_memory_bytes),
            )
            for s in told.stages
        ],
    )
    print_table(
        ("axis", "operation", "ranks", "calls", "bytes", "seconds", "not hidden"),
        [
            (
                t.axis,
                t.operation,
                t.group_ranks,
                t.messages,
                size(t.payload_bytes),
                f"{t.seconds:.3g}",
                f"{t.exposed_s:.3g}",
            )
            for t in told.traffic
        ],
        empty="no communication",
    )


def _print_validation(found: "Validation") -> None:
    print_table(
        ("source", "rows", "error", "bias", "worst", "held out"),
        [
            (s.source, s.rows, f"{s.mean_absolute:.1%}", f"{s.bias:+.1%}", f"{s.largest:+.0%}", f"{s.held_out:.1%}")
            for s in found.sources
        ],
    )
    print(f"all       {len(found.rows)} rows, mean error {found.mean_absolute:.1%}, median {found.median_absolute:.1%}")
    print(f"          held out {found.held_out:.1%}, rank correlation {found.rank_correlation:.4f}")
    print(f"memory    at most {found.worst_memory_underestimate:.1%} too low")
    if found.rankings:
        print(
            f"ranking   the fastest of the published alternatives is first in {found.ranked_right:.0%} of "
            f"{len(found.rankings)} groups"
        )
    for wrong in (r for r in found.rankings if not r.right):
        print(f"          not {wrong.ids[0]}, but {wrong.predicted} was predicted")
    for left_out in found.excluded:
        print(f"left out  {len(left_out.ids)}: {left_out.reason}")
