"""The console: pages over the workspace's verbs, on the same server as the API.

    app = create_app(workspace); mount(app, workspace)

NiceGUI keeps its pages in one place of the process, so a process has one console. Nothing is loaded from elsewhere:
styles, scripts and fonts come from this server. There is no logic here that the command line lacks.
"""

import warnings
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from nicegui import ui

from mainspring import __version__
from mainspring.console import assistant, cluster, data, entrance, flows, hardware, models, overview, playground, runs
from mainspring.console.frame import page
from mainspring.spec import NotFound
from mainspring.workspace import Workspace

ASSETS = Path(__file__).parent / "assets"
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
"""A report is somebody's file: it is shown, and may neither load nor run anything."""


async def nowhere(request: Request) -> None:
    """What stands at every address that no page has."""
    async with page("Nothing here", section=""):
        raise NotFound(f"there is no page at {request.url.path}", hint="the pages are in the navigation")


def mount(app: FastAPI, workspace: Workspace) -> None:
    """Add the console to an application made by `api.app.create_app`."""
    entrance.add_to(app, check=app.state.check_token, home=workspace.store.home)
    app.mount("/console", StaticFiles(directory=ASSETS))

    @app.get("/reports/{ref}.html", include_in_schema=False)
    def report(ref: str) -> HTMLResponse:
        return HTMLResponse(workspace.report_page(ref), headers={"Content-Security-Policy": REPORT_POLICY})

    style = f'<link rel="stylesheet" href="/console/console.css?{__version__}">'
    ui.add_head_html(f'{style}<script src="/console/console.js?{__version__}"></script>', shared=True)
    for pages in (overview, runs, flows, data, models, playground, assistant, cluster, hardware):
        pages.add_to(workspace)
    # To find its server NiceGUI looks at every object of the process, and torch's old names warn when looked at.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning, module=r"nicegui\.ui_run_with")
    ui.run_with(
        app,
        root=nowhere,
        title="Mainspring",
        favicon=ASSETS / "mark.svg",
        dark=None,
        language="en-US",
        tailwind=False,
        reconnect_timeout=10.0,
        show_welcome_message=False,
    )
