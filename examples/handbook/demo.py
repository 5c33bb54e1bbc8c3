"""The whole wheel on real documents, then an assistant to talk to: `make demo`, or `python examples/handbook/demo.py`.

Collects the documentation inside this Python (or `--docs folder`), cleans it, trains a small language model on two
ranks, evaluates and quantises it, builds the retrieval index, publishes the assistant, asks it three questions over
HTTP, and serves API and console until Ctrl-C. Run it again and only what changed is done again.
"""

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx

import mainspring as ms
from mainspring.api.app import create_app
from mainspring.cli.flow_verb import drawn, show
from mainspring.console.app import mount
from mainspring.data.snapshot import texts
from mainspring.evaluate.questions import make_questions
from mainspring.serve.http import listen
from mainspring.spec import Denied, load_settings
from mainspring.workspace import Workspace

HERE = Path(__file__).parent
DOCUMENTS_ASKED_ABOUT = 500
PYTHON_QUESTIONS = (
    "Which function joins two paths?",
    "How do I read JSON from a file?",
    "What does the with statement do?",
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--docs", default="python:docs", help="folder of Markdown, text, HTML or PDF files")
    options.add_argument("--port", type=int, default=load_settings().port, help="MAINSPRING_PORT, or 8420, by default")
    given = options.parse_args()
    given.docs = given.docs or "python:docs"  # `make demo DOCS=`
    docs = given.docs if given.docs.startswith("python:") else str(Path(given.docs).absolute())
    with ms.connect(settings=load_settings()) as workspace, drawn() as on_event:
        with listen(create_app(workspace), port=given.port):
            pass  # a port in use is said now, not after the training
        if workspace.guard("127.0.0.1") and not load_settings().token:
            raise Denied("this workspace has tokens, and none was given", hint="set MAINSPRING_TOKEN to one")
        flow = workspace.flow(HERE / "flow.toml", overrides=[f"docs={docs!r}"], on_event=on_event)
    show(flow, as_json=False)
    with ms.connect(settings=load_settings()) as workspace, serving(workspace, given.port) as url:
        for question in questions(workspace, docs):
            print(f"\n\033[1m{question}\033[0m" if sys.stdout.isatty() else f"\n{question}")
            print(ask(url, question))
        print(f"\nconsole  {url}\nAPI      {url}/docs\nOpenAI   {url}/v1 (models: {', '.join(names(url))})")
        if sys.stdout.isatty():
            print("Ctrl-C stops it")
            with interruptible():
                threading.Event().wait()


@contextmanager
def serving(workspace: Workspace, port: int) -> Iterator[str]:
    """API, console and everything published, on one port of this machine."""
    app = create_app(workspace)
    mount(app, workspace)
    with listen(app, port=port) as url:
        yield url


def questions(workspace: Workspace, docs: str) -> tuple[str, ...]:
    """Three questions: about Python, or made by rules from the folder's own documents."""
    if docs == "python:docs":
        return PYTHON_QUESTIONS
    documents = list(islice(texts(workspace.store, "dataset:handbook"), DOCUMENTS_ASKED_ABOUT))
    return tuple(question.text for question in make_questions(documents, 3))


def ask(url: str, question: str) -> str:
    """The assistant's answer with its sources, through the OpenAI-compatible side."""
    body = {"model": "handbook", "messages": [{"role": "user", "content": question}]}
    answered = httpx.post(f"{url}/v1/chat/completions", json=body, headers=bearer(), timeout=60)
    [choice] = answered.raise_for_status().json()["choices"]
    extra = choice["mainspring"]
    sources = "".join(f"\n  [{one['marker']}] {one['source']}" for one in extra["citations"])
    return f"{choice['message']['content']}{sources}" + (f"\n  ({extra['note']})" if extra["note"] else "")


def names(url: str) -> list[str]:
    """What can be asked for."""
    told = httpx.get(f"{url}/v1/models", headers=bearer()).raise_for_status().json()
    return [model["id"] for model in told["data"]]


def bearer() -> dict[str, str]:
    """What a workspace that has tokens wants to see of this program too."""
    token = load_settings().token
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the block, not the program with a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopping")


if __name__ == "__main__":
    from mainspring.cli.app import report

    try:
        main()
    except ms.MainspringError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(130)
