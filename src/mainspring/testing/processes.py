"""Find processes by a mark in their environment, so that a test can prove that none of its own is left."""

import time
from collections.abc import Callable
from pathlib import Path


def marked(name: str, value: str) -> dict[int, str]:
    """Every live process of this machine whose environment has `name=value`, with its command line."""
    wanted = f"{name}={value}".encode()
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended while we looked, or somebody else's
    return found


def eventually(condition: Callable[[], bool], *, within_s: float) -> bool:
    """Whether `condition` comes true within `within_s`."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)  # noqa: TID251 polling is the point, and only tests come here
    return True
