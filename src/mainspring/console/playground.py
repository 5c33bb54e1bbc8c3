"""Try a published model: a prompt, how to sample, and the text as it comes, with its speed."""

import time
from collections.abc import Callable

from nicegui import ui

from mainspring.console.frame import page, press, problem, read
from mainspring.console.markup import join, show, tag
from mainspring.console.parts import empty, heading, panel
from mainspring.console.stream import Pieces, pieces_of
from mainspring.console.words import DOT, count, duration
from mainspring.serve.servable import Prompt
from mainspring.spec import MainspringError, SamplingParams
from mainspring.workspace import Workspace

DRAW_S = 0.08
"""The text is sent to the browser at most this often."""
LONGEST = 2048


def add_to(workspace: Workspace) -> None:
    """Register the page."""

    def offered() -> list[str]:
        apps = {artifact.name for artifact in workspace.artifacts(kind="app")}
        return [name for name in workspace.offers().names() if name not in apps]

    @ui.page("/playground", response_timeout=60)
    async def playground(name: str = "") -> None:
        async with page("Playground", section="playground"):
            show(heading("Playground", lead="Complete a prompt with any published model."))
            names = await read(offered)
            if names:
                Bench(workspace, names, chosen=name).draw()
            else:
                command = "mainspring run examples/handbook/flow.toml"
                show(panel("No model yet", empty("There is nothing to try.", command)))


class Bench:
    """One visitor's prompt and what came of it."""

    def __init__(self, workspace: Workspace, names: list[str], *, chosen: str) -> None:
        self._workspace = workspace
        self._names = names
        self._name = chosen if chosen in names else names[0]
        self._stopped = True

    def draw(self) -> None:
        """Put the fields and the answer on the page."""
        with ui.element("div").classes("split aside-right"):
            with ui.element("section").classes("panel stack"):
                self._prompt = ui.textarea("Prompt", value="The ").props("outlined autogrow").classes("prompt")
                self._prompt.props('input-style="min-height:96px"').on("keydown.ctrl.enter.prevent", self._generate)
                with ui.element("div").classes("row"):
                    press("Generate", self._generate, tone="primary")
                    self._end = press("Stop", self._stop)
                    self._end.props("disabled")
                    self._told = show().classes("note")
                self._output = show(tag("div", "The continuation appears here.", class_="output soft"))
            with ui.element("section").classes("panel stack"):
                self._model = ui.select(self._names, value=self._name, label="Model").props("outlined options-dense")
                self._temperature = _slider("Temperature", 0.8, least=0.0, most=2.0, step=0.05)
                self._top_p = _slider("Top-p", 0.95, least=0.05, most=1.0, step=0.05)
                self._most = _slider("Longest answer, in tokens", 128, least=1, most=LONGEST, step=1)

    def _stop(self) -> None:
        self._stopped = True

    async def _generate(self) -> None:
        if not self._stopped:
            return
        self._stopped = False
        self._end.props(remove="disabled")
        client = ui.context.client
        prompt, name = self._prompt.value or "", self._model.value
        self._told.content = f"loading {name}"
        try:
            sampling = SamplingParams(
                max_tokens=int(self._most()), temperature=round(self._temperature(), 3), top_p=round(self._top_p(), 3)
            )
            servable = await read(lambda: self._workspace.offers().get(name))
            await self._stream(pieces_of(servable, Prompt(text=prompt), sampling), prompt, lambda: client.is_deleted)
        except MainspringError as error:
            self._told.content = ""
            self._output.content = problem(error)
        finally:
            self._stopped = True
            self._end.props("disabled")

    async def _stream(self, pieces: Pieces, prompt: str, gone: Callable[[], bool]) -> None:
        text, tokens, finish = "", 0, ""
        started_s = drawn_s = first_s = time.perf_counter()
        async with pieces as stream:
            async for piece in stream:
                first_s = time.perf_counter() if not tokens else first_s
                text, tokens = text + piece.text, tokens + len(piece.token_ids)
                finish = piece.finish or finish
                if self._stopped or gone():
                    finish = "stopped"
                    break
                if time.perf_counter() - drawn_s > DRAW_S:
                    drawn_s = time.perf_counter()
                    self._write(prompt, text, _speed(tokens, drawn_s - first_s))
        ended_s = time.perf_counter()
        why = {"length": "reached its length", "stop": "ended by itself"}.get(finish, finish)
        told = [
            f"{count(tokens)} tokens",
            _speed(tokens, ended_s - first_s),
            f"first after {duration(first_s - started_s)}",
            why,
        ]
        self._write(prompt, text, DOT.join(filter(None, told)))

    def _write(self, prompt: str, text: str, told: str) -> None:
        self._output.content = tag("div", join(tag("mark", prompt), text), class_="output", aria_live="polite")
        self._told.content = told


def _speed(tokens: int, seconds: float) -> str:
    return f"{(tokens - 1) / seconds:.0f} tokens/s" if tokens > 1 and seconds > 0 else ""


def _slider(label: str, value: float, *, least: float, most: float, step: float) -> Callable[[], float]:
    """A slider under its name and value; returns what reads it."""
    with ui.element("div"):
        with ui.element("div").classes("bar-label"):
            show(label)
            told = show(f"<b>{value:g}</b>")
        slider = ui.slider(min=least, max=most, step=step, value=value).props(f'aria-label="{label}"')
        slider.on_value_change(lambda event: told.set_content(f"<b>{event.value:g}</b>"))
    return lambda: slider.value or least
