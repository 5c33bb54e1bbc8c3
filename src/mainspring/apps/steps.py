"""The wheel's stages as steps, for flows in TOML: `call = "mainspring.apps.steps:train"`.

Each takes artifacts and plain values, returns the artifact it published, and may be left out or replaced by a function
of the flow's own.
"""

from pathlib import Path
from typing import Literal

from mainspring.flow.graph import step
from mainspring.spec import Artifact, Progress
from mainspring.store import Store

Policy = Literal["strict", "balanced", "aggressive"]
CALIBRATION_DOCUMENTS = 32


@step(cache=False)  # reads a source that no digest in the graph describes; equal content gives the same version again
def documents(
    source: str, name: str, store: Store, run: str, progress: Progress, policy: Policy = "balanced"
) -> Artifact:
    """Read `source`, clean and deduplicate it, and publish the next version of dataset `name`."""
    from mainspring.data.dataset import Dataset

    return Dataset(store, name).read(source).clean().dedup(policy=policy).publish(run=run, progress=progress)


@step
def tokens(data: Artifact, vocab: int, store: Store, run: str, progress: Progress) -> Artifact:
    """Learn a tokenizer of `vocab` ids from a dataset and pack the dataset with it."""
    from mainspring.data import pack

    return pack.tokens_of(store, data.ref, vocab=vocab, run=run, progress=progress)


@step
def train(
    recipe: Path,
    tokens: Artifact,
    name: str,
    store: Store,
    run: str,
    progress: Progress,
    ranks: int | None = None,
    overrides: tuple[str, ...] = (),
) -> Artifact:
    """Plan the recipe for the machines at hand, train it on its ranks and publish `model:<name>`."""
    from mainspring.cluster import Launcher, survey
    from mainspring.train import launch
    from mainspring.train import resume as attempts

    machines = survey(store.settings.address)
    facts = launch.facts_of(store, tokens.ref)
    plan = launch.plan_for(recipe, cluster=machines, facts=facts, ranks=ranks, overrides=overrides)
    # A step that was interrupted goes on from its checkpoints when the same step, with the same inputs, runs again.
    resume = attempts.same_step(store, run)
    with Launcher(store, address=store.settings.address) as launcher:
        return launch.train(
            store,
            launcher,
            recipe,
            plan=plan,
            tokens_ref=tokens.ref,
            name=name,
            run=run,
            resume=resume,
            overrides=overrides,
            progress=progress,
        )


@step
def evaluate(
    model: Artifact, store: Store, run: str, progress: Progress, compare_to: Artifact | None = None
) -> Artifact:
    """Measure a model on the documents held out from it, beside `compare_to` when given; publishes a report."""
    from mainspring.evaluate.stage import evaluate_model

    other = compare_to.ref if compare_to else ""
    return evaluate_model(store, model.ref, compare_to=other, run=run, progress=progress)


@step
def compress(
    model: Artifact, data: Artifact, store: Store, run: str, progress: Progress, scheme: str = "w8a8"
) -> Artifact:
    """Quantise a model, calibrated on documents of `data`, and publish it."""
    from itertools import islice

    from mainspring.compress.quantize import quantize
    from mainspring.data import snapshot

    calibration = [document.text for document in islice(snapshot.texts(store, data.ref), CALIBRATION_DOCUMENTS)]
    return quantize(store, model.ref, scheme=scheme, texts=calibration, run=run, progress=progress)


@step
def index(data: Artifact, name: str, store: Store, run: str, progress: Progress, embedder: str = "lsa") -> Artifact:
    """Cut a dataset into chunks and publish the hybrid retrieval index `index:<name>`."""
    from mainspring.apps.rag.index import build_index

    return build_index(store, data.ref, name=name, embedder=embedder, run=run, progress=progress)


@step
def retrieval(index: Artifact, store: Store, run: str, progress: Progress) -> Artifact | None:
    """Recall and reciprocal rank of an index on questions from held-out documents; publishes a report."""
    from mainspring.apps.rag.publish import measure

    return measure(store, index.ref, run=run, progress=progress)


@step
def assistant(
    name: str, index: Artifact, data: Artifact, engine: Artifact, store: Store, run: str, progress: Progress
) -> Artifact:
    """Judge `engine` by its report and publish the assistant: it writes answers only when the gate is passed."""
    from mainspring.apps.rag.assistant import publish_app
    from mainspring.apps.rag.publish import judge

    gate = judge(store, engine.ref, data=data.ref, run=run, progress=progress)
    progress(1.0, f"generator gate {gate.verdict}: {'; '.join(gate.reasons)}")
    return publish_app(store, name=name, index_ref=index.ref, model_ref=engine.ref, gate=gate, run=run)
