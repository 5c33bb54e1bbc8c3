"""The cluster: the quota tree, who waits and why, what runs where, and what would happen if a job came now."""

from collections.abc import Callable, Sequence

from nicegui import ui

from mainspring.console import fleet
from mainspring.console.frame import live, page, press, problem, read
from mainspring.console.markup import show
from mainspring.console.parts import heading
from mainspring.spec import Gang, MainspringError, NodeUse, QueueShare, Request, SpecError, Waiting, Why
from mainspring.workspace import Workspace

EVERY_S = 4.0
ANY = "any"
NAMELESS = "a job like this"
Seen = tuple[tuple[NodeUse, ...], tuple[QueueShare, ...], tuple[Waiting, ...]]


def add_to(workspace: Workspace) -> None:
    """Register the page."""

    def look() -> Seen:
        return workspace.nodes(), workspace.usage(), workspace.queue()

    @ui.page("/cluster", response_timeout=60)
    async def cluster(job: str = "") -> None:
        async with page("Cluster", section="cluster"):
            show(heading("Cluster", lead="Who holds what, who waits and why, and what runs where."))
            seen = await read(look)
            asked = show()
            if job:
                asked.content = fleet.answer((await read(lambda: workspace.why(job)))[0])
            drawn = show()

            def draw(now: Seen) -> None:
                nodes, shares, waiting = now
                parts = (fleet.totals(nodes, waiting), fleet.tree(shares), fleet.line(waiting), fleet.topology(nodes))
                drawn.content = "".join(parts)

            await live(look, draw, every_s=EVERY_S)
            WhatIf(workspace, nodes=seen[0], shares=seen[1]).draw()


class WhatIf:
    """One visitor's job that does not exist, and what would happen to it."""

    def __init__(self, workspace: Workspace, *, nodes: Sequence[NodeUse], shares: Sequence[QueueShare]) -> None:
        self._workspace = workspace
        self._queues = list(dict.fromkeys(share.queue for share in shares))
        self._leaves = list(dict.fromkeys(share.queue for share in shares if share.jobs)) or self._queues
        self._models = [ANY, *sorted({node.model for node in nodes if node.model})]
        self._devices = bool(len(self._models) > 1)

    def draw(self) -> None:
        """Put the form and its answer on the page."""
        with ui.element("section").classes("panel stack what-if"):
            show('<div class="panel-head"><h2>What if</h2></div>')
            with ui.element("div").classes("fields"):
                self._queue = ui.select(self._leaves, value=self._leaves[0], label="Queue").props(_FIELD)
                self._ranks = ui.number("Ranks", value=8, min=1, precision=0).props("outlined dense")
                self._each = ui.number("Devices a rank", value=1 if self._devices else 0, min=0).props("outlined dense")
                self._model = ui.select(self._models, value=ANY, label="Model").props(_FIELD)
                self._cores = ui.number("Cores a rank", value=1, min=0).props("outlined dense")
                self._pool = ui.select(self._queues, value=self._queues[0], label="Gather all of").props(_FIELD)
            with ui.element("div").classes("row"):
                press("Could it start?", self._ask, tone="primary")
                press("Plan a gather", self._gather)
            show("<p class='note'>Tried on a copy of the books; nothing is started or stopped.</p>")
        self._answer = show()

    async def _ask(self) -> None:
        await self._try(lambda: fleet.answer(self._why()))

    async def _gather(self) -> None:
        pool = str(self._pool.value)
        await self._try(lambda: fleet.plan(self._workspace.plan_gather(pool, self._gang())))

    async def _try(self, ask: Callable[[], str]) -> None:
        try:
            self._answer.content = await read(ask)
        except MainspringError as error:
            self._answer.content = problem(error)

    def _why(self) -> Why:
        return self._workspace.why(self._gang())[0]

    def _gang(self) -> Gang:
        model = str(self._model.value)
        try:
            request = Request.of(
                cpus=float(self._cores.value or 0),
                devices=float(self._each.value or 0),
                models=() if model == ANY else (model,),
            )
        except ValueError as error:
            raise SpecError(str(error)) from error
        return Gang(id=NAMELESS, queue=str(self._queue.value), ranks=int(self._ranks.value or 1), request=request)


_FIELD = "outlined dense options-dense"
