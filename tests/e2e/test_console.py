"""The console in a real browser: every page on a wide and a phone-sized screen, in light and in dark.

A server of its own process serves a workspace that this one has filled. Screenshots are kept in the folder that
pytest names at the end of its path, so that a person can look at what was asserted.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import torch
from console_workspace import Made, populate
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from mainspring.spec import Settings
from mainspring.store import Store
from mainspring.testing.processes import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SCREENS = {"wide": (1440, 900), "phone": (390, 844)}
expect.set_options(timeout=30_000)  # how long a page may take on a busy machine; what is there is seen at once
UP = "from mainspring.cli import main; main()"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("console")
    torch.set_num_threads(1)  # a model of microseconds: a second thread only waits for a core
    found = populate(folder / "home", folder / "docs")
    yield found
    found.close()


@pytest.fixture(scope="module")
def url(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(made.home, tmp_path_factory.mktemp("server")) as found:
        yield found


class serving:  # noqa: N801 reads like a function where it is used
    """`mainspring up` in a process of its own, until the block ends."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._said = folder / "said.txt"
        self._home = home

    def __enter__(self) -> str:
        with self._said.open("w") as said:
            command = [sys.executable, "-c", UP, "--home", str(self._home), "up", "--port", "0"]
            self._process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=self._said.parent)
        assert eventually(lambda: self._found() is not None or self._process.poll() is not None, within_s=60)
        found = self._found()
        assert found, self._said.read_text()
        return found[0]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        assert not (self._said.parent / ".nicegui").exists(), "the console keeps files where it was started"

    def _found(self) -> re.Match[str] | None:
        return re.search(r"http://127\.0\.0\.1:[1-9]\d*", self._said.read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if path is None:
        pytest.skip("no chromium or google-chrome on PATH")
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()


@dataclass
class Visit:
    """One page in a browser, with what went wrong while it was looked at."""

    page: Page
    origin: str
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda said: self.trouble.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda request: self._ask(request.url))
        self.page.on("websocket", lambda socket: self._ask(socket.url))

    def _ask(self, url: str) -> None:
        if not url.startswith((self.origin, self.origin.replace("http", "ws", 1), "data:", "blob:", "about:")):
            self.trouble.append(f"foreign request: {url}")

    def open(self, path: str) -> None:
        """Go there and wait until the page is alive."""
        self.page.goto(self.origin + path)
        self._wait()

    def _wait(self) -> None:
        self.page.wait_for_function("window.socket?.connected")

    def check(self) -> None:
        """Nothing went wrong, and nothing sticks out sideways."""
        self._wait()
        assert not self.trouble
        wider = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"{wider} px wider than the screen"


def visit(context: BrowserContext, url: str) -> Visit:
    return Visit(context.new_page(), url)


@pytest.fixture(params=[(screen, theme) for screen in SCREENS for theme in ("light", "dark")], ids="-".join)
def context(request: pytest.FixtureRequest, browser: Browser) -> Iterator[BrowserContext]:
    screen, theme = request.param
    width, height = SCREENS[screen]
    phone = screen == "phone"
    found = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, is_mobile=phone, has_touch=phone
    )
    yield found
    found.close()


@pytest.fixture
def wide(browser: Browser) -> Iterator[BrowserContext]:
    found = browser.new_context(viewport={"width": 1440, "height": 900})
    yield found
    found.close()


def pages(made: Made) -> dict[str, tuple[str, list[str]]]:
    """Every page: where it is, and what must be readable on it."""
    dataset, model = made.dataset, made.model
    return {
        "overview": ("/", ["wiki", "reading page 42 of 100", "handbook-lm@1", "answers quoted", "On disk", model]),
        "runs": ("/runs", ["handbook-lm", "train", "failed", "no-such-folder", "handbook-refresh"]),
        "run": (f"/runs/{made.train_run}", [made.train_run, "Tokens per second", "rank 0 of 2 joined", model, "60"]),
        "failed": (f"/runs/{made.failed_run}", ["no file or folder", "Traceback"]),
        "flows": ("/flows", ["handbook-refresh", "4 of 4 steps", "retrieval", "Parameters"]),
        "data": ("/data", [dataset, "dataset:handbook@1"]),
        "dataset": (f"/data/{dataset}", ["exact_duplicates", "few_letters", "docs/photo.pdf", "1 to 12 of", "Compare"]),
        "models": ("/models", [model, "latest-good", "w8a8", "report"]),
        "model": (f"/artifacts/{model}", ["bits per byte", "The gate is", "model.safetensors", "tokens:handbook@1"]),
        "playground": ("/playground", ["handbook-lm", "Temperature", "Top-p", "Generate"]),
        "assistant": ("/assistant", ["Ask handbook anything"]),
        "cluster": ("/cluster?job=ablation", ["33 of 47", "waiting for", "1 would fit now", "node-4", "What if"]),
        "hardware": ("/hardware", ["Device memory", "fp32 peak", "healthy", "Checks", "disk"]),
    }


def test_every_page_shows_what_is_there(context: BrowserContext, url: str, made: Made, tmp_path: Path) -> None:
    found = visit(context, url)
    for name, (path, texts) in pages(made).items():
        found.open(path)
        main = found.page.locator("#main")
        for text in texts:
            if text == "healthy":  # a busy machine is told to be degraded
                expect(main).to_contain_text(re.compile("healthy|degraded"))
            else:
                expect(main.get_by_text(text).first, f"{name}: {text}").to_be_attached()
        found.page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        found.check()


def test_the_curves_are_drawn(context: BrowserContext, url: str, made: Made) -> None:
    found = visit(context, url)
    found.open(f"/runs/{made.train_run}")
    expect(found.page.locator(".nicegui-echart svg")).to_have_count(5)
    line = found.page.locator(".nicegui-echart svg path[fill=none]").last
    assert len(line.get_attribute("d") or "") > 200, "the line has no points"
    paths = "[...document.querySelector('.nicegui-echart').querySelectorAll('path')]"
    colours = found.page.evaluate(f"{paths}.map(path => getComputedStyle(path).stroke)")
    accent = found.page.evaluate("getComputedStyle(document.querySelector('#main a')).color")
    assert accent in colours, "the curve is not drawn in the theme's colour"
    found.check()


def test_a_phone_reaches_every_page_through_its_bar(browser: Browser, url: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    found = visit(context, url)
    found.open("/")
    bar = found.page.get_by_role("navigation", name="Pages", exact=True)
    expect(bar.get_by_role("link", name="Hardware")).to_be_hidden()
    bar.get_by_text("More").tap()
    found.page.get_by_role("navigation", name="More pages").get_by_role("link", name="Hardware").tap()
    expect(found.page).to_have_url(f"{url}/hardware")
    found.check()
    context.close()


def test_running_work_moves_and_stops_on_the_page(wide: BrowserContext, url: str, made: Made) -> None:
    """A run of another process: its progress is seen to change, and the button ends it."""
    with Store.open(Settings(home=str(made.home))) as store:
        record = store.start_run("train", "by hand", config={})
        store.set_run_state(record.id, "RUNNING")
        metrics = store.run_dir(record.id) / "metrics.jsonl"
        found = visit(wide, url)
        found.open(f"/runs/{record.id}")
        expect(found.page.locator("#main")).to_contain_text("It has said nothing yet.")
        metrics.write_text(json.dumps({"step": 1, "loss": 4.25, "lr": 1e-3, "tokens_per_s": 10.0, "mfu": 0.1}) + "\n")
        expect(found.page.locator("#main")).to_contain_text("4.250")
        expect(found.page.locator(".nicegui-echart svg")).to_have_count(5)
        found.page.get_by_role("button", name="Stop").click()
        assert eventually(lambda: bool(store.events(kind="run.stop", subject=record.id)), within_s=10)
        store.set_run_state(record.id, "CANCELLED", "stopped by hand")
        expect(found.page.locator("#main")).to_contain_text("stopped by hand")
        expect(found.page.get_by_role("button", name="Stop")).to_be_hidden()
        found.check()


def test_a_flow_changes_colour_while_it_runs(wide: BrowserContext, url: str, made: Made) -> None:
    with Store.open(Settings(home=str(made.home))) as store:
        config = {"steps": {"read": {"call": "x:read"}, "learn": {"call": "x:learn"}}, "needs": {"learn": ["read"]}}
        record = store.start_run("flow", "live", config=config)
        store.set_run_state(record.id, "RUNNING")
        found = visit(wide, url)
        found.open(f"/flows/{record.id}")
        expect(found.page.locator(".graph .node.off")).to_have_count(2)
        event = {
            "step": "read",
            "state": "RUNNING",
            "fraction": 0.5,
            "message": "half of it",
            "run": "",
            "seconds": 1.0,
        }
        store.emit("flow.step", record.id, {**event, "attempt": 1})
        expect(found.page.locator(".graph .node.run")).to_contain_text("half of it")
        store.emit("flow.step", record.id, {**event, "state": "SUCCEEDED", "message": "", "attempt": 2})
        expect(found.page.locator(".graph .node.good")).to_contain_text("read")
        store.set_run_state(record.id, "SUCCEEDED")
        found.check()


def test_a_job_that_does_not_exist_hears_what_would_happen_to_it(wide: BrowserContext, url: str) -> None:
    found = visit(wide, url)
    found.open("/cluster")
    main = found.page.locator("#main")
    found.page.get_by_role("button", name="Could it start?").click()
    expect(main.locator(".answer")).to_contain_text("would start")
    found.page.get_by_label("Ranks").fill("60")
    found.page.get_by_role("button", name="Could it start?").click()
    expect(main.locator(".answer")).to_contain_text("refused")
    found.page.get_by_label("Ranks").fill("20")
    found.page.get_by_role("button", name="Plan a gather").click()
    expect(main.locator(".answer, .alert").last).to_contain_text(re.compile("Device-hours lost|does not make room"))
    main.get_by_role("link", name="huge").click()
    expect(found.page).to_have_url(f"{url}/cluster?job=huge")
    expect(main.locator(".answer")).to_contain_text("It would start with")
    found.check()


def test_a_step_and_a_lineage_box_lead_on(wide: BrowserContext, url: str, made: Made) -> None:
    found = visit(wide, url)
    found.open(f"/flows/{made.flow_run}")
    found.page.locator(".graph").get_by_role("link", name="index").click()
    expect(found.page.locator("h1")).to_have_text("index")
    found.open(f"/artifacts/{made.model}")
    found.page.locator(".graph .node.current .under").click()
    expect(found.page).to_have_url(f"{url}/runs/{made.train_run}")
    found.page.locator(".graph").get_by_role("link", name=made.dataset).click()
    expect(found.page).to_have_url(f"{url}/data/{made.dataset}")
    found.check()


def test_documents_can_be_leafed_through_and_compared(wide: BrowserContext, url: str, made: Made) -> None:
    found = visit(wide, url)
    found.open(f"/data/{made.dataset}")
    first = found.page.locator(".reader h3").inner_text()
    found.page.get_by_role("button", name="Next").click()
    expect(found.page.locator(".reader h3")).not_to_have_text(first)
    expect(found.page.locator("#main")).to_contain_text("13 to 24 of")
    found.page.locator(".reader .list button").nth(3).click()
    expect(found.page.locator(".reader .list button").nth(3)).to_have_attribute("aria-pressed", "true")
    for source in ("docs/csv.reader.md", "docs/math.isclose.md"):
        expect(found.page.locator("#main").get_by_text(source).last).to_be_visible()
    found.check()


def test_a_report_is_shown_with_its_plots_and_may_run_nothing(wide: BrowserContext, url: str, made: Made) -> None:
    found = visit(wide, url)
    found.open(f"/artifacts/{made.model}")
    found.page.get_by_text("The report with its plots").click()
    inside = found.page.frame_locator("iframe.report")
    expect(inside.locator("h1")).to_contain_text(made.model)
    expect(inside.locator("figure svg").first).to_be_attached()
    policy = httpx.get(f"{url}/reports/report:model-handbook-lm@1.html").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    found.check()


def test_the_playground_streams_and_says_how_fast(wide: BrowserContext, url: str) -> None:
    found = visit(wide, url)
    found.open("/playground?name=handbook-lm")
    found.page.get_by_label("Prompt").fill("Return the")
    found.page.get_by_role("button", name="Generate").click()
    expect(found.page.locator("#main")).to_contain_text(re.compile(r"\d+ tokens/s"), timeout=60_000)
    expect(found.page.locator("#main")).to_contain_text(re.compile("reached its length|ended by itself"))
    assert len(found.page.locator(".output").inner_text()) > len("Return the")
    found.page.get_by_label("Prompt").fill("a long prompt " * 400)
    found.page.get_by_label("Prompt").press("Control+Enter")
    expect(found.page.locator(".alert")).to_contain_text("context")
    found.check()


def test_a_question_is_answered_with_citations_and_its_thumb_is_kept(
    wide: BrowserContext, url: str, made: Made
) -> None:
    found = visit(wide, url)
    found.open("/assistant")
    found.page.get_by_label("Question").fill("Which function copies a directory tree recursively?")
    found.page.get_by_label("Question").press("Enter")
    card = found.page.locator(".cite").first
    expect(card).to_contain_text("copytree", timeout=60_000)
    expect(card.locator("blockquote")).to_be_visible()
    expect(found.page.locator(".mode")).to_contain_text(re.compile("extracted|generated"))
    found.page.get_by_role("button", name="Not right").click()
    found.page.get_by_label("Correction").fill("shutil.copytree, which returns the destination.")
    found.page.get_by_role("button", name="Send").click()
    expect(found.page.locator("#main")).to_contain_text(f"kept for {made.dataset}")
    found.check()
    with Store.open(Settings(home=str(made.home))) as store:
        (event,) = store.events(kind="feedback", subject="handbook")
        row = json.loads(event.data_json)
        trace = store.events(kind="trace", subject="handbook")[-1]
    assert row["thumb"] == "down"
    assert row["correction"].startswith("shutil.copytree")
    assert row["author"] == "local"
    assert row["trace"] == json.loads(trace.data_json)["id"]
    assert row["snapshot"] == made.dataset


def test_what_does_not_exist_is_said_with_a_hint(wide: BrowserContext, url: str) -> None:
    page = wide.new_page()
    for path, hint in (("/runs/nothing-like-it", "mainspring ps"), ("/no-such-page", "navigation")):
        answer = page.goto(url + path)
        assert answer is not None
        assert answer.status == 404
        expect(page.locator("h1")).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text(hint)
    assert httpx.get(f"{url}/v1/no-such-route").json()["error"]["type"] == "NotFound"


def test_the_theme_is_turned_and_remembered(wide: BrowserContext, url: str) -> None:
    found = visit(wide, url)
    found.open("/hardware")
    toggle = found.page.get_by_role("button", name="Change theme")
    for name, classes in (("light", "body--light"), ("dark", "body--dark")):
        toggle.click()
        expect(toggle).to_have_text(f"Theme: {name}")
        expect(found.page.locator("body")).to_have_class(re.compile(classes))
    found.open("/data")
    expect(found.page.locator("body")).to_have_class(re.compile("body--dark"))
    found.check()


def test_an_empty_workspace_says_what_to_run_next(wide: BrowserContext, tmp_path: Path) -> None:
    with serving(tmp_path / "home", tmp_path) as url:
        found = visit(wide, url)
        hints = {
            "/": "make demo",
            "/runs": "mainspring run",
            "/flows": "mainspring run",
            "/data": "mainspring data",
            "/models": "mainspring train",
            "/playground": "mainspring run",
            "/assistant": "mainspring app publish",
        }
        for path, hint in hints.items():
            found.open(path)
            expect(found.page.locator(".empty code").first, path).to_contain_text(hint)
            found.check()


def test_without_a_token_nothing_leaks(browser: Browser, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Store.open(Settings(home=str(home))) as store:
        token = store.create_token("ada", "viewer")
        store.start_run("train", "secret-name", config={})
    with serving(home, tmp_path) as url:
        for path in ("/", "/runs", "/data/x", "/reports/x.html", "/docs", "/openapi.json", "/nothing"):
            answer = httpx.get(url + path)
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith("/login"), path
            assert "secret-name" not in answer.text
        socket = httpx.get(f"{url}/_nicegui_ws/socket.io/?EIO=4&transport=polling")
        assert socket.status_code == 303
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        found = visit(context, url)
        found.page.goto(f"{url}/runs?kind=train")
        found.page.get_by_label("Access token").fill("ms_wrong")
        found.page.get_by_role("button", name="Sign in").click()
        expect(found.page.get_by_role("alert")).to_contain_text("not known")
        found.trouble.clear()  # the browser tells of the 401 itself
        found.page.get_by_label("Access token").fill(token)
        found.page.get_by_role("button", name="Sign in").click()
        expect(found.page).to_have_url(f"{url}/runs?kind=train")
        expect(found.page.locator("#main")).to_contain_text("secret-name")
        (cookie,) = [cookie for cookie in context.cookies() if cookie["name"] == "mainspring_session"]
        assert cookie["httpOnly"]
        found.check()
        with Store.open(Settings(home=str(home))) as store:
            store.revoke_token("ada")
        expect(found.page).to_have_url(re.compile("/login"))  # nobody has touched the page
        found.page.goto(f"{url}/runs")
        expect(found.page).to_have_url(re.compile("/login"))
        context.close()
    assert (home / "console.key").stat().st_mode & 0o777 == 0o600
