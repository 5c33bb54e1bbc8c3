"""Ask a published assistant: the answer as it comes, what it rests on, and a place to say what was wrong."""

from collections.abc import Mapping
from typing import Any

from nicegui import ui

from mainspring.console.frame import icon, identity, page, press, problem, read
from mainspring.console.markdown import inline, markdown
from mainspring.console.markup import Markup, join, show, tag
from mainspring.console.parts import empty, heading, panel
from mainspring.console.stream import pieces_of
from mainspring.serve.servable import Prompt
from mainspring.spec import MainspringError, SamplingParams, Thumb
from mainspring.workspace import Workspace

UP = "M7 9l3-6c1.300 0 2 .9 1.700 2.200L11 8h4.500l-1.300 7.500H7zM7 9H4v6.500h3"
DOWN = "M13 11l-3 6c-1.300 0-2-.9-1.700-2.200L9 12H4.500l1.300-7.500H13zM13 11h3V4.500h-3"
MODES = {
    "generated": "written by the model from the passages below",
    "extracted": "quoted from the documents",
}


def add_to(workspace: Workspace) -> None:
    """Register the page."""

    @ui.page("/assistant", response_timeout=60)
    async def assistant(name: str = "") -> None:
        async with page("Assistant", section="assistant"):
            apps = await read(lambda: workspace.artifacts(kind="app"))
            names = list(dict.fromkeys(artifact.name for artifact in apps))
            show(heading("Assistant", lead="Answers from the documents, with the passages they rest on."))
            if names:
                Chat(workspace, names, chosen=name).draw()
            else:
                command = "mainspring app publish handbook --corpus dataset:handbook"
                show(panel("No assistant yet", empty("Publish one over a dataset.", command)))


class Chat:
    """One visitor's conversation. The assistant answers each question by itself."""

    def __init__(self, workspace: Workspace, names: list[str], *, chosen: str) -> None:
        self._workspace = workspace
        self._names = names
        self._name = chosen if chosen in names else names[0]
        self._who = identity().name
        self._busy = False

    def draw(self) -> None:
        """Put the conversation and the question on the page."""
        with ui.element("section").classes("panel stack"):
            if len(self._names) > 1:
                choice = ui.select(self._names, value=self._name, label="Assistant").props("outlined dense")
                choice.on_value_change(lambda event: setattr(self, "_name", event.value))
            with ui.element("div").classes("thread").props("aria-live=polite") as self._thread:
                self._hello = show(empty(f"Ask {self._name} anything about its documents."))
            with ui.element("div").classes("ask"):
                self._field = ui.input("Question").props("outlined").on("keydown.enter", self._ask)
                press("Ask", self._ask, tone="primary")

    async def _ask(self) -> None:
        question = (self._field.value or "").strip()
        if self._busy or not question:
            return
        self._busy, self._field.value = True, ""
        self._hello.content = ""
        with self._thread:
            show(tag("span", question)).classes("said me")
            answer = ui.element("div").classes("said")
        with answer:
            text = show(tag("p", "reading the documents", class_="note"))
        try:
            told = await self._stream(question, text)
            with answer:
                text.content = view("".join(told[0]), told[1])
                _Verdict(self._workspace, self._name, str(told[1]["trace"]), self._who).draw()
        except MainspringError as error:
            text.content = problem(error)
        finally:
            self._busy = False

    async def _stream(self, question: str, shown: ui.html) -> tuple[list[str], Mapping[str, Any]]:
        name, client = self._name, ui.context.client
        servable = await read(lambda: self._workspace.offers().get(name))
        words: list[str] = []
        found: Mapping[str, Any] = {}
        prompt = Prompt(messages=(("user", question),))
        async with pieces_of(servable, prompt, SamplingParams(max_tokens=None)) as stream:
            async for piece in stream:
                words.append(piece.text)
                found = piece.metadata or found
                shown.content = tag("div", markdown("".join(words)), class_="text")
                if client.is_deleted:
                    break
        return words, found


class _Verdict:
    """Thumbs and the correction of one answer."""

    def __init__(self, workspace: Workspace, name: str, trace: str, who: str) -> None:
        self._workspace, self._name, self._trace, self._who = workspace, name, trace, who

    def draw(self) -> None:
        """Put the buttons under the answer."""
        with ui.element("div").classes("row"):
            self._up = self._thumb("Helpful", UP, lambda: self._record("up"))
            self._down = self._thumb("Not right", DOWN, self._open)
            self._told = show().classes("note")
        with ui.dialog() as self._dialog, ui.element("div").classes("dialog"):
            show(tag("h2", "What should it have said?"))
            self._correction = ui.textarea("Correction").props("outlined autogrow stack-label")
            self._comment = ui.input("Comment, if you like").props("outlined stack-label")
            show(
                tag(
                    "p",
                    "Kept with the answer, its passages and the dataset's version, for the next version.",
                    class_="note",
                )
            )
            with ui.element("div").classes("row"):
                press("Send", self._correct, tone="primary")
                press("Cancel", self._dialog.close)

    def _thumb(self, label: str, path: str, act: Any) -> ui.element:
        button = ui.element("button").classes("thumb").props(f'type=button aria-pressed=false title="{label}"')
        with button.on("click", act):
            ui.html(join(icon(path), tag("span", label)), sanitize=False, tag="span").classes("inner")
        return button

    def _open(self) -> None:
        self._dialog.open()

    async def _correct(self) -> None:
        await self._record("down")
        self._dialog.close()

    async def _record(self, thumb: Thumb) -> None:
        down = thumb == "down"
        correction = self._correction.value or "" if down else ""
        comment = self._comment.value or "" if down else ""
        try:
            row = await read(
                lambda: self._workspace.feedback(
                    self._name, trace=self._trace, thumb=thumb, correction=correction, comment=comment, author=self._who
                )
            )
        except MainspringError as error:
            self._told.content = problem(error)
            return
        self._up.props(f"aria-pressed={'false' if down else 'true'}")
        self._down.props(f"aria-pressed={'true' if down else 'false'}")
        self._told.content = f"Thank you: kept for {row.snapshot}."


def view(text: str, found: Mapping[str, Any]) -> Markup:
    """A whole answer: how it was made, the text with its markers, and a card for each passage."""
    trace = str(found["trace"])
    mode = tag(
        "p",
        tag("span", found["mode"], class_=f"badge {'good' if found['mode'] == 'generated' else 'off'}"),
        tag("span", str(found["note"]).removeprefix(f"{found['mode']} from the documents: ") or MODES[found["mode"]]),
        class_="mode",
    )
    cards = [_card(citation, trace) for citation in found["citations"]]
    told = markdown(text, cite=lambda marker: f"#{trace}-{marker}")
    return join(mode, tag("div", told, class_="text"), cards)


def _card(citation: Mapping[str, Any], trace: str) -> Markup:
    path = " > ".join(part for part in citation["path"] if part != citation["source"])
    head = tag(
        "summary",
        tag("span", f"[{citation['marker']}]", class_="n"),
        tag("span", tag("b", citation["source"]), tag("div", path, class_="note") if path else None),
    )
    about = tag("p", f"passage {citation['chunk'][:16]}, score {citation['score']:.3g}", class_="note")
    return tag(
        "details",
        head,
        tag("blockquote", inline(citation["quote"])),
        about,
        class_="cite",
        id=f"{trace}-{citation['marker']}",
        open=citation["marker"] == 1,
    )
