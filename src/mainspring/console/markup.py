"""HTML from plain values: every text is escaped unless it is markup already.

Most of a page is a pure function from specs to `Markup`; NiceGUI carries it to the browser and swaps it when it
changed. What a visitor operates (charts, fields, buttons that act) are NiceGUI elements.
"""

from collections.abc import Iterable
from html import escape

from nicegui import ui

EMPTY = frozenset({"path", "circle", "line", "rect"})


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def tag(name: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """`<name ...>children</name>`. A trailing underscore of an attribute falls away and others become hyphens."""
    wanted = {key: value for key, value in attributes.items() if value is not None and value is not False}
    given = "".join(_attribute(key, value) for key, value in wanted.items())
    if name in EMPTY:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after the other."""
    return Markup("".join(map(_text, children)))


def show(markup: str = "") -> ui.html:
    """An element that shows markup of ours; set its `content` to change it."""
    return ui.html(markup, sanitize=False).classes("shown")


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return escape(str(child))
    return join(*child)


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
