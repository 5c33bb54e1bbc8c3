"""From a recipe to a published model: plan it, start its gang, follow it, hand back what the ranks published.

A run that failed is continued by calling `train` again with the same run (or with `resume` naming it): the ranks go
on from the newest undamaged checkpoint, on the same number of ranks or another.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.cluster import Handle, Launcher, require_success
from mainspring.data.loader import HELD_OUT, TRAIN, TokenLoader, read_token_set
from mainspring.plan.offers import by_kind, enlarged
from mainspring.plan.search import menu, plan_training
from mainspring.spec import (
    Artifact,
    Cluster,
    Hints,
    Job,
    ModelSpec,
    Objective,
    Plan,
    Progress,
    Resources,
    Shape,
    SpecError,
    TrainConfig,
    TrainPayload,
    Turn,
    silent,
)
from mainspring.store import Store, parse
from mainspring.train.recipe import Facts, load_recipe
from mainspring.train.resume import check_unchanged, checkpoints_of

if TYPE_CHECKING:
    from mainspring.train.dryrun import DryRun

ENTRY = "mainspring.train.worker:main"
METRICS, RESULT = "metrics.jsonl", "result.json"  # written by the worker
POLL_S = 0.25
STARTS = 5  # after a lost or drained node training goes on elsewhere, from its last checkpoint
GRACE_S = 600.0  # for the step at hand and a checkpoint, when others need its places
BEAT_S = 1.0  # `progress` is called at least this often: it is how a caller stops a run, whatever the run is doing
TAIL_BYTES = 1 << 16  # holds the newest row of the metrics
CANCEL_S = 30.0
# Stands in for a vocabulary when a recipe is planned without data.
DEFAULT_VOCAB = 32_000


@dataclass(frozen=True, slots=True)
class TokenSource:
    """A packed dataset on this machine, its tokenizer's folder, and both references."""

    tokens: Path
    tokenizer: Path
    inputs: tuple[str, ...]


def open_tokens(store: Store, ref: str) -> TokenSource:
    """Fetch the tokens `ref` and the tokenizer they were made with."""
    artifact = store.resolve(ref)
    if artifact.kind != "tokens":
        raise SpecError(f"{artifact.ref} is no packed dataset", hint="pack it first; training reads tokens:<name>")
    folder = store.fetch(artifact)
    tokenizer = store.resolve(read_token_set(folder).tokenizer)
    return TokenSource(tokens=folder, tokenizer=store.fetch(tokenizer), inputs=(artifact.ref, tokenizer.ref))


def facts_of(store: Store, ref: str) -> Facts:
    """What a recipe's model may ask about the tokens `ref`; the length of a row comes from its configuration."""
    from mainspring.models.tokenizer import Tokenizer

    source = open_tokens(store, ref)
    words = Tokenizer.load(source.tokenizer)
    return {"vocab": read_token_set(source.tokens).vocab, "eos_id": words.eos_id, "bos_id": words.bos_id}


def plan_for(
    recipe: str | Path,
    *,
    cluster: Cluster,
    facts: Facts | None = None,
    ranks: int | None = None,
    objective: Objective = "time",
    overrides: Sequence[str] = (),
) -> Plan:
    """The best way to train `recipe` on `cluster`. Without `facts` its vocabulary is taken as `DEFAULT_VOCAB`.

    Overrides that are named like a field of `Hints` say what the plan must be; the others belong to the recipe.
    """
    model, config, hints = study(recipe, facts=facts, overrides=overrides)
    return plan_training(model, cluster, config, ranks=ranks, objective=objective, hints=hints)


def menu_for(
    recipe: str | Path,
    *,
    cluster: Cluster,
    facts: Facts | None = None,
    objective: Objective = "time",
    overrides: Sequence[str] = (),
) -> tuple[Plan, ...]:
    """The best ways to train `recipe` on 1, 2, 4 ... and all ranks of `cluster`, for a scheduler to choose from.

    Of several kinds of device each has its own: a scheduler gives a gang devices of one kind.
    """
    model, config, hints = study(recipe, facts=facts, overrides=overrides)
    found: list[Plan] = []
    last: SpecError | None = None
    for part in by_kind(cluster):
        try:
            found += menu(model, part, config, objective=objective, hints=hints)
        except SpecError as error:
            last = error
    if last is not None and not found:
        raise last
    return tuple(found)


def dry_run_of(
    recipe: str | Path,
    *,
    facts: Facts,
    plan: Plan | None,
    cluster: Cluster | None,
    world: int,
    rank: int = 0,
    overrides: Sequence[str] = (),
) -> DryRun:
    """What `rank` of `plan`, or of the best plan for `world` ranks on machines like `cluster`'s, holds and sends."""
    from mainspring.train.dryrun import dry_run

    model, config, hints = study(recipe, facts=facts, overrides=overrides)
    if plan is None:
        if world < 1 or cluster is None:
            raise SpecError(f"a dry run needs a plan or a number of ranks, world is {world}", hint="give --world 4096")
        plan = plan_training(model, enlarged(cluster, world), config, ranks=world, hints=hints)
    loaded = load_recipe(recipe, split_hints(overrides)[1])
    return dry_run(loaded.recipe, model, plan, rank=rank, facts=facts)


def study(
    recipe: str | Path, *, facts: Facts | None = None, overrides: Sequence[str] = ()
) -> tuple[ModelSpec, TrainConfig, Hints]:
    """What a planner must know of a recipe: its model, its numbers, and what the plan must be."""
    from mainspring.train.profile import study_recipe

    hints, rest = split_hints(overrides)
    loaded = load_recipe(recipe, rest)
    known = facts or {"vocab": DEFAULT_VOCAB, "eos_id": None, "bos_id": None}
    model, hints = study_recipe(loaded.recipe, known, name=loaded.path.stem, hints=hints)
    return model, loaded.recipe.config, hints


def split_hints(overrides: Sequence[str]) -> tuple[Hints, tuple[str, ...]]:
    """`tp=2`, `schedule=gpipe` and the like as hints for the plan, and the overrides that are the recipe's."""
    names = {field.name for field in dataclasses.fields(Hints)}
    mine = [each for each in overrides if each.partition("=")[0].strip() in names]
    rest = tuple(each for each in overrides if each not in mine)
    return parse.read_dict(parse.apply_overrides({}, mine), Hints, where="plan"), rest


def train(
    store: Store,
    launcher: Launcher,
    recipe_path: str | Path,
    *,
    plan: Plan,
    tokens_ref: str,
    name: str,
    run: str = "",
    resume: str = "",
    turn: Turn = Turn(),  # noqa: B008 it is frozen
    menu: Sequence[Plan] = (),
    overrides: Sequence[str] = (),
    progress: Progress = silent,
) -> Artifact:
    """Train on `plan.mesh.world` ranks and return the published `model:<name>`.

    From a `menu` of plans the scheduler chooses, and chooses again when more is free or others come.

    Checkpoints belong to `resume`, else to `run`; whichever has some is continued. Raises `WorkerLost` or `Failed` with
    the reason of the rank that ended it and the end of its log; the checkpoints stay for the next call.
    """
    # Torch is imported by what follows, which is why planning comes without it.
    from mainspring.train.profile import check_recipe
    from mainspring.train.travel import settings_for_ranks, sources_of, split_secret
    from mainspring.train.trial import try_recipe

    loaded = load_recipe(recipe_path, split_hints(overrides)[1])
    source = open_tokens(store, tokens_ref)
    facts = facts_of(store, tokens_ref)
    config = _agreed(loaded.recipe.config, plan)
    for each in (plan, *menu):
        _agreed(config, each)
        check_recipe(loaded.recipe, facts, each)
    run_id = run or f"train-{name}"
    saved = check_unchanged(store, resume or run_id, config)
    progress(0.0, _reading(source, config, saved.get("data")))
    try_recipe(loaded.recipe, facts)  # the plan may be from a file, and the recipe have changed since
    payload = TrainPayload(
        run_id=run,
        sources=sources_of(loaded),
        plan_json=parse.to_json(plan),
        config_json=parse.to_json(config),
        tokens=source.inputs[0],
        tokenizer=source.inputs[1],
        checkpoints=checkpoints_of(store, resume or run_id),
        output=name,
        inputs=source.inputs,
        settings_json=parse.to_json(settings_for_ranks(store)),
    )
    open_part, secret = split_secret(payload)
    job = replace(_job(store, plan, run_id, menu=menu), payload_json=open_part, secret_json=secret)
    job = replace(job, queue=turn.queue, priority=turn.priority)
    result = launcher.run_root / job.id / RESULT
    result.unlink(missing_ok=True)
    _follow(launcher.submit(job), steps=plan.steps, progress=progress)
    return store.resolve(json.loads(result.read_text("utf-8"))["ref"])


def check_resumes(store: Store, run: str, recipe: str | Path, overrides: Sequence[str] = ()) -> None:
    """Raise `SpecError` when `recipe` cannot go on from the checkpoints of `run`, for callers about to start one."""
    check_unchanged(store, run, load_recipe(recipe, split_hints(overrides)[1]).recipe.config)


def _reading(source: TokenSource, config: TrainConfig, saved: Mapping[str, int | str] | None) -> str:
    """What will be read. Too few tokens for one sample is known now, not when every rank has started.

    So is that a checkpoint was reading something else.
    """
    given = {"seq_len": config.seq_len, "global_batch": config.global_batch, "seed": config.seed}
    loader = TokenLoader(source.tokens, TRAIN, **given)
    if saved:
        loader.load_state(saved)
    reading = loader.reading(config.steps)
    if config.eval_every:
        TokenLoader(source.tokens, HELD_OUT, **given)
    return reading


def check_reach(store: Store, launcher: Launcher, *, plan: Plan, run: str) -> None:
    """Raise what `train` would raise because the cluster has no room for `plan` or its nodes cannot reach the store.

    For callers who have long work to do before they train. Costs nothing on a local cluster.
    """
    if launcher.address != "local":
        launcher.check(_job(store, plan, run))


def shapes_of(plans: Iterable[Plan]) -> tuple[Shape, ...]:
    """Plans as shapes of a job, the fastest for each number of ranks of each kind; who mixes kinds is none."""
    best: dict[tuple[int, tuple[str, ...]], Plan] = {}
    for plan in plans:
        devices = tuple(dict.fromkeys(stage.device for stage in plan.stages))
        if len(devices) > 1:
            continue
        known = best.setdefault((plan.mesh.world, devices), plan)
        if plan.tokens_per_s > known.tokens_per_s:
            best[plan.mesh.world, devices] = plan
    return tuple(
        Shape(
            ranks=ranks,
            speed=max(1, round(plan.tokens_per_s)),
            plan=f"{plan.mesh.label} on {ranks} {devices[0]}",
            resources=_resources(plan),
            payload_json=json.dumps({"plan_json": parse.to_json(plan)}),
            models=devices if plan.accelerators else (),
            watts=round(plan.watts),
            milli_usd_per_hour=round(1000 * plan.price_usd_per_hour),
        )
        for (ranks, devices), plan in best.items()
    )


def _job(store: Store, plan: Plan, run_id: str, *, menu: Sequence[Plan] = ()) -> Job:
    return Job(
        id=run_id,
        name=f"train {plan.model}",
        entry=ENTRY,
        ranks=plan.mesh.world,
        resources=_resources(plan),
        needs=store.needs(run_id),
        starts=STARTS,
        grace_s=GRACE_S,
        heeds=True,
        menu=shapes_of(menu),
    )


def _agreed(config: TrainConfig, plan: Plan) -> TrainConfig:
    """`config`, if `plan` was made for it; a plan read from a file may be older than the recipe."""
    for field in ("global_batch", "seq_len", "steps", "precision"):
        asked, planned = getattr(config, field), getattr(plan, field)
        if asked != planned:
            raise SpecError(f"the recipe has {field} = {asked}, the plan {planned}", hint="plan the recipe again")
    return config


def _resources(plan: Plan) -> Resources:
    """What each rank reserves: its accelerators. Cores are shared out among the ranks of a machine by the worker."""
    return Resources(devices=float(plan.accelerators))


def _follow(handle: Handle, *, steps: int, progress: Progress) -> None:
    """Report what the job waits for, then each logged step, until it ends; raise as it failed.

    Ctrl-C, or a `progress` that raises because somebody stopped the run, cancels the job and waits until it is gone.
    """
    metrics = handle.run_dir / METRICS
    read, said, said_s, ended = 0, (0.0, ""), 0.0, threading.Event()
    watcher = threading.Thread(target=lambda: (handle.wait(), ended.set()), daemon=True)
    watcher.start()
    try:
        while not ended.wait(POLL_S):
            row, read = _newest_row(metrics, read)
            news = _told(row, steps) if row else (said[0], _waiting(handle)) if _waits(handle, said) else said
            if news != said or time.monotonic() - said_s > BEAT_S:
                progress(*news)
                said, said_s = news, time.monotonic()
    except BaseException:
        handle.cancel("interrupted")
        ended.wait(CANCEL_S)
        raise
    require_success(handle.wait())
    row, _ = _newest_row(metrics, read)
    if row:
        progress(*_told(row, steps))


def _waits(handle: Handle, said: tuple[float, str]) -> bool:
    """Whether there is nothing newer to tell than what the job waits for: before its first step, or since it ran."""
    return said[0] == 0.0 or handle.state != "RUNNING"


def _waiting(handle: Handle) -> str:
    return f"{handle.state.lower()}: {handle.reason}" if handle.reason else handle.state.lower()


def _told(row: dict[str, Any], steps: int) -> tuple[float, str]:
    message = f"step {row['step']}/{steps}, loss {row['loss']:.3f}, {row['tokens_per_s']:,.0f} tokens/s"
    return min(1.0, row["step"] / steps), f"{message}, MFU {row['mfu']:.1%}"


def _newest_row(metrics: Path, read: int) -> tuple[dict[str, Any] | None, int]:
    """The newest complete row beyond byte `read`, if any, and how far the file has been read."""
    if not metrics.exists():
        return None, read
    with metrics.open("rb") as file:
        start = file.seek(max(read, metrics.stat().st_size - TAIL_BYTES))
        text = file.read()
    complete = text[: text.rfind(b"\n") + 1]
    return (json.loads(complete.splitlines()[-1]) if complete else None), start + len(complete)
