"""The wheel as a drawing: its eight stages, what each made last, and which of them is turning now."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi, sin

from mainspring.console.markup import Child, Markup, tag
from mainspring.console.parts import RUNNING, verdict
from mainspring.console.words import DOT, ago, count, link_to, meta, several, size
from mainspring.spec import Artifact, Event, RunRecord

RADIUS, CENTRE = 118, 160


@dataclass(frozen=True, slots=True)
class Turn:
    """One stage: its name, its tone, what it made last and when."""

    name: str
    tone: str
    what: Child
    when_s: float | None


def turns(artifacts: Sequence[Artifact], records: Sequence[RunRecord], feedback: Sequence[Event]) -> tuple[Turn, ...]:
    """Every stage from the newest artifacts (newest first), runs and feedback rows."""
    states = _latest_states(records)
    made = tuple(
        _turn(name, next((artifact for artifact in artifacts if wanted(artifact)), None), states.get(verb, ""), say)
        for name, verb, wanted, say in _STAGES
    )
    rows = several(len(feedback), "row") if feedback else "thumbs and corrections of an assistant"
    last_s = feedback[-1].time_s if feedback else None
    return (*made, Turn("Feedback", "good" if feedback else "off", rows, last_s))


def draw(stages: Sequence[Turn]) -> Markup:
    """The ring beside its list."""
    done = sum(stage.when_s is not None for stage in stages)
    ring = tag("circle", cx=CENTRE, cy=CENTRE, r=RADIUS, class_="track")
    arcs = [_arc(index, len(stages)) for index, stage in enumerate(stages) if stage.when_s is not None]
    stops = [_stop(index, stage, len(stages)) for index, stage in enumerate(stages)]
    hub = tag("text", f"{done}/{len(stages)}", x=CENTRE, y=CENTRE - 6, class_="hub")
    note = tag("text", "stages turned", x=CENTRE, y=CENTRE + 20, class_="hub-note")
    drawing = tag(
        "svg",
        ring,
        arcs,
        stops,
        hub,
        note,
        viewBox=f"0 0 {2 * CENTRE} {2 * CENTRE}",
        role="img",
        aria_label=f"{done} of {len(stages)} stages",
    )
    lines = [
        tag(
            "li",
            tag("span", index, class_="n"),
            tag("span", stage.name, class_="name"),
            tag("span", stage.what, class_="what" if stage.tone != "off" else "what soft"),
            tag("span", "now" if stage.tone == "run" else ago(stage.when_s) if stage.when_s else "", class_="when"),
        )
        for index, stage in enumerate(stages, start=1)
    ]
    return tag("div", drawing, tag("ol", lines, class_="stages"), class_="wheel")


def _place(index: int, of: int) -> tuple[float, float]:
    angle = 2 * pi * index / of - pi / 2
    return CENTRE + RADIUS * cos(angle), CENTRE + RADIUS * sin(angle)


def _arc(index: int, of: int) -> Markup:
    """The piece of the ring from a stage to the next."""
    (x, y), (x2, y2) = _place(index, of), _place(index + 1, of)
    return tag("path", d=f"M{x:.1f} {y:.1f}A{RADIUS} {RADIUS} 0 0 1 {x2:.1f} {y2:.1f}", class_="turn")


def _stop(index: int, stage: Turn, of: int) -> Markup:
    x, y = _place(index, of)
    dot = tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=20, class_=f"stop {stage.tone}")
    number = tag("text", index + 1, x=f"{x:.1f}", y=f"{y:.1f}", class_=stage.tone)
    return tag("g", tag("title", stage.name), dot, number)


def _turn(name: str, artifact: Artifact | None, state: str, say: Callable[[Mapping], str]) -> Turn:
    running, failed = state in RUNNING, state == "FAILED"
    if artifact is None:
        return Turn(name, "run" if running else "bad" if failed else "off", _PENDING[name], None)
    try:
        told = say(meta(artifact)) or size(artifact.size_bytes)
    except KeyError:  # published by somebody else's code, without the notes of our stages
        told = size(artifact.size_bytes)
    what = tag("span", link_to(artifact.ref, f"{artifact.name}@{artifact.version}"), DOT, told)
    return Turn(name, "run" if running else "good", what, artifact.created_s)


def _latest_states(records: Sequence[RunRecord]) -> dict[str, str]:
    """The state of the newest run of each verb; a step counts for the verb it calls."""
    states: dict[str, str] = {}
    for record in records:
        call = json.loads(record.config_json).get("call", "") if record.kind == "step" else record.kind
        states.setdefault(call.rpartition(":")[2], record.state)
    return {verb: next((states[name] for name in names if name in states), "") for verb, names in _NAMES.items()}


_NAMES = {
    "data": ("data", "documents"),
    "tokens": ("tokens",),
    "train": ("train",),
    "eval": ("eval", "evaluate"),
    "compress": ("compress",),
    "index": ("index",),
    "app": ("app", "assistant"),
}
ANSWERS = {"pass": "written by the model", "fail": "quoted from the documents"}
_PENDING = {
    "Documents": "nothing read yet",
    "Tokens": "made by training on a dataset",
    "Training": "no model yet",
    "Evaluation": "no report yet",
    "Compression": "no smaller model yet",
    "Index": "made with an assistant",
    "Assistant": "none published yet",
}


def _quantised(artifact: Artifact) -> bool:
    return artifact.kind == "model" and "scheme" in meta(artifact)


def _trained(noted: Mapping) -> str:
    loss = noted.get("final_loss")
    parts = [f"{count(noted['parameters'])} parameters"] if "parameters" in noted else []
    return DOT.join([*parts, f"loss {loss:.3f}"] if loss is not None else parts)


def _smaller(noted: Mapping) -> str:
    return f"{noted['scheme']}{DOT}{size(noted['bytes_before'])} to {size(noted['bytes_after'])}"


def _is_model_report(artifact: Artifact) -> bool:
    return artifact.kind == "report" and artifact.name.startswith("model-")


_STAGES: tuple[tuple[str, str, Callable[[Artifact], bool], Callable[[Mapping], str]], ...] = (
    ("Documents", "data", lambda a: a.kind == "dataset", lambda m: f"{count(m['rows'])} of {count(m['read'])} kept"),
    ("Tokens", "tokens", lambda a: a.kind == "tokens", lambda m: f"{count(m['train'])} tokens to learn from"),
    ("Training", "train", lambda a: a.kind == "model" and not _quantised(a), _trained),
    ("Evaluation", "eval", _is_model_report, lambda m: verdict(m["gate"])),
    ("Compression", "compress", _quantised, _smaller),
    ("Index", "index", lambda a: a.kind == "index", lambda m: f"{count(m['chunks'])} passages"),
    ("Assistant", "app", lambda a: a.kind == "app", lambda m: f"answers {ANSWERS[m['gate']]}"),
)
