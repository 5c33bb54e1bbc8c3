"""A deployment: one gang of one rank that serves a model until it is told to stop."""

import threading
from pathlib import Path

from mainspring.cluster import Handle, Launcher, require_success
from mainspring.spec import TERMINAL, Deployment, Job, Progress, ServePayload, Unavailable
from mainspring.store import parse

ENTRY = "mainspring.serve.http:main"
POLL_S = 0.1


def deploy(
    launcher: Launcher, models: tuple[tuple[str, Path], ...], *, run: str, port: int = 0
) -> tuple[Handle, Deployment]:
    """Start serving `(name, folder)` models on a process of their own and wait until it answers.

    Raises `Failed` or `WorkerLost` with the rank's reason when it does not come up.
    """
    payload = ServePayload(models=tuple((name, str(folder)) for name, folder in models), port=port)
    needs = tuple(str(folder) for _, folder in models)
    job = Job(id=run, name=f"serve {models[0][0]}", entry=ENTRY, payload_json=parse.to_json(payload), needs=needs)
    handle = launcher.submit(job)
    endpoint = handle.run_dir / "endpoint.json"
    waiting = threading.Event()
    while not endpoint.exists():
        if handle.state in TERMINAL:
            require_success(handle.wait())
            raise Unavailable(f"the server of {models[0][0]} ended before it listened", hint=f"mainspring logs {run}")
        waiting.wait(POLL_S)
    return handle, parse.read_json(endpoint.read_text("utf-8"), Deployment)


def follow(handle: Handle, progress: Progress, deployment: Deployment) -> None:
    """Stay with a deployment until it ends; an exception out of `progress` stops it."""
    ended = threading.Event()
    threading.Thread(target=lambda: (handle.wait(), ended.set()), daemon=True).start()
    try:
        while not ended.wait(POLL_S):
            progress(1.0, f"serving {', '.join(deployment.models)} at {deployment.url}")
    finally:
        handle.cancel("stopped")
        handle.wait()
