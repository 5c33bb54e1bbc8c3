"""What every page stands in: navigation, theme, the sheet it is written on, and what is said when something fails."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from nicegui import ui

from mainspring import __version__
from mainspring.console.markdown import inline
from mainspring.console.markup import Markup, join, show, tag
from mainspring.console.parts import heading
from mainspring.spec import Failed, Identity, MainspringError

log = logging.getLogger(__name__)
T = TypeVar("T")
THEME_COOKIE = "mainspring_theme"
THEMES: dict[str, bool | None] = {"auto": None, "light": False, "dark": True}
YEAR_S = 365 * 86400
PAGE_S = 60.0
"""How long a page may take to build before its visitor is told; the first one of a process opens the data room."""

ICONS = {
    "overview": "M3.5 11.5 10 4l6.5 7.5M5.5 9.5V16h9V9.5",
    "runs": "M3 10h3l2-5 4 10 2-5h3",
    "flows": "M5 3.5h4v4H5zM11 12.5h4v4h-4zM7 7.5v7h4",
    "data": "M4 5c0-1.1 2.7-2 6-2s6 .9 6 2-2.7 2-6 2-6-.9-6-2zM4 5v10c0 1.1 2.7 2 6 2s6-.9 6-2V5M4 10c0 1.1 2.7 2 6 2",
    "models": "M10 2.5 16.5 6v8L10 17.5 3.5 14V6zM3.5 6 10 9.5 16.5 6M10 9.5v8",
    "playground": "M4 5h12M4 10h8M4 15h5M14 12.5v5M11.5 15h5",
    "assistant": "M3.5 4.5h13v9h-7l-3.5 3v-3H3.5zM7 8h6M7 10.5h4",
    "cluster": "M8 3h4v3H8zM3 14h4v3H3zM8 14h4v3H8zM13 14h4v3h-4zM10 6v8M5 14v-4h10v4",
    "hardware": "M6 6h8v8H6zM8 3v3M12 3v3M8 14v3M12 14v3M3 8h3M3 12h3M14 8h3M14 12h3",
    "more": "M4 6h12M4 10h12M4 14h12",
}
PAGES = (
    ("overview", "/", "Overview"),
    ("runs", "/runs", "Runs"),
    ("flows", "/flows", "Flows"),
    ("data", "/data", "Data"),
    ("models", "/models", "Models"),
    ("playground", "/playground", "Playground"),
    ("assistant", "/assistant", "Assistant"),
    ("cluster", "/cluster", "Cluster"),
    ("hardware", "/hardware", "Hardware"),
)
FIRST = frozenset({"overview", "runs", "models", "assistant"})
"""What a phone's bar shows; the others are behind its last entry."""

SPRING = (
    "M16 16c0-1.6 2.4-1.6 2.4.5 0 3-5.2 3.2-5.2-.8 0-4.9 8.1-5.1 8.1.9 0 6.9-11 7.1-11-.9"
    "C10.3 7.4 24.2 7.3 24.2 16.6c0 6.2-5.2 8.6-9.7 8.1"
)


def icon(path: str) -> Markup:
    """A line drawing of 20 by 20."""
    return tag("svg", tag("path", d=path), class_="icon", viewBox="0 0 20 20", aria_hidden="true")


def spring() -> Markup:
    """The mark of the house."""
    line = tag("path", d=SPRING, fill="none", stroke="var(--spring)", stroke_width="2", stroke_linecap="round")
    return tag("svg", line, viewBox="6 6 20 20", aria_hidden="true")


def identity() -> Identity:
    """Who is looking at the page that is being built, or operates it."""
    return ui.context.client.request.scope["state"]["identity"]


@asynccontextmanager
async def page(title: str, *, section: str) -> AsyncIterator[None]:
    """Build a page inside; an error is shown in its place, one of our tree with its hint and its HTTP status."""
    client = ui.context.client
    client.title = f"{title} - Mainspring"
    theme = ui.dark_mode(THEMES.get(client.request.cookies.get(THEME_COOKIE, "")))
    show(tag("a", "Skip to content", href="#main", class_="skip"))
    show(_navigation(section))
    with ui.element("div").classes("main").props("id=main"), ui.element("div").classes("sheet") as sheet:
        try:
            yield
        except MainspringError as error:
            _give_up(error, instead_of=None if sheet.default_slot.children else title)
        except Exception:
            log.exception("a page failed", extra={"page": title})
            told = Failed("this page could not be drawn", hint="the log of the server says why")
            _give_up(told, instead_of=None if sheet.default_slot.children else title)
    _foot(theme)


def _give_up(error: MainspringError, *, instead_of: str | None) -> None:
    """Show what went wrong, under the title of a page that has not begun yet."""
    ui.context.client.status_code = error.http_status
    if instead_of:
        show(heading(instead_of))
    show(problem(error))


def problem(error: MainspringError) -> Markup:
    """An error as a visitor reads it: what happened, then what to do."""
    hint = tag("p", inline(error.hint), class_="hint") if error.hint else None
    return tag("div", tag("p", inline(str(error))), hint, class_="alert", role="alert")


async def live(load: Callable[[], T], draw: Callable[[T], None], *, every_s: float = 2.0) -> None:
    """Draw what `load` gives, now and every `every_s` seconds while the page is open. `load` may block."""
    draw(await read(load))
    trouble = show()

    async def again() -> None:
        try:
            draw(await read(load))
        except MainspringError as error:
            trouble.content = problem(error)
        else:
            trouble.content = ""

    ui.timer(every_s, again, immediate=False)


async def read(load: Callable[[], T]) -> T:  # house: says once why every page does it
    """What `load` returns, worked out on a thread: the loop of this process also carries the streams of models."""
    return await asyncio.to_thread(load)


def press(label: str, act: Callable[[], Awaitable[None] | None], *, tone: str = "") -> ui.element:
    """A button. An error of our tree that `act` raises is shown in passing."""

    async def pressed() -> None:
        try:
            done = act()
            if done is not None:
                await done
        except MainspringError as error:
            ui.notify(f"{error}. {error.hint}" if error.hint else str(error), type="negative")

    element = ui.element("button").classes(f"button {tone}").props("type=button").on("click", pressed)
    with element:
        ui.html(Markup(tag("span", label)), sanitize=False, tag="span")
    return element


def _navigation(section: str) -> Markup:
    def link(key: str, href: str, label: str) -> Markup:
        here = "page" if key == section else None
        return tag(
            "a",
            icon(ICONS[key]),
            tag("span", label),
            href=href,
            aria_current=here,
            class_=None if key in FIRST else "minor",
        )

    brand = tag("a", spring(), tag("span", "Mainspring"), href="/", class_="brand")
    links = [link(*entry) for entry in PAGES]
    others = tag("nav", [link(*entry) for entry in PAGES if entry[0] not in FIRST], aria_label="More pages")
    more = tag("details", tag("summary", icon(ICONS["more"]), tag("span", "More")), others, class_="more")
    return tag("nav", brand, links, more, class_="rail", aria_label="Pages")


def _foot(theme: ui.dark_mode) -> None:
    """Who is here, which version this is, and the theme, kept in a cookie so that the next page is born with it."""
    who = identity()

    async def turn() -> None:
        names = list(THEMES)
        now = next(name for name, value in THEMES.items() if value is theme.value)
        name = names[(names.index(now) + 1) % len(names)]
        # Remembered before it is seen: whoever sees it may leave the page at once.
        await ui.run_javascript(f"document.cookie='{THEME_COOKIE}={name};path=/;max-age={YEAR_S};samesite=lax'")
        theme.value = THEMES[name]
        label.content = f"Theme: {name}"

    with ui.element("div").classes("rail-foot"):
        leave = tag("form", tag("button", "Sign out", type="submit"), method="post", action="/logout")
        known = join(tag("span", who.name), " ", leave) if who.name != "local" else tag("span", __version__)
        show(known).classes("who")
        with ui.element("button").classes("toggle").props('type=button aria-label="Change theme"').on("click", turn):
            start = next(name for name, value in THEMES.items() if value is theme.value)
            label = ui.html(f"Theme: {start}", sanitize=False, tag="span")
