"""The main program of one rank: `python -m mainspring.cluster.rank REPORT_FD PARENT_PID < order.json`.

Started by the node agent in its own session, with stdout and stderr in `rank-N.log`. Dies with the agent
(PR_SET_PDEATHSIG), turns SIGTERM into `SystemExit` so that `finally` blocks run, calls the entry point, and tells
the agent over REPORT_FD why it failed at the moment it does: before interpreter shutdown, which can take seconds.
"""

import contextlib
import ctypes
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import mainspring
from mainspring.cluster.notice import LEFT, NOTICE, let_through
from mainspring.hardware.share import Bounds, apply
from mainspring.spec import MainspringError, Task, logs
from mainspring.spec.plugin import load_entry
from mainspring.spec.settings import quiet_third_parties

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
LONGEST = 1800  # characters of a message that are told; the log has the whole


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent goes, and go now if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def describe(error: BaseException) -> str:
    """`ExceptionType: message (recipe.py, line 7, in loss)`, of a planned error its hint instead of the place.

    Looks through the SystemExit that a SIGTERM raised over a real exception.
    """
    if isinstance(error, SystemExit) and error.code == LEFT:
        cause = error.__context__
        return describe(cause) if isinstance(cause, Exception) else ""
    if isinstance(error, MainspringError):  # whose hint a traceback shows too, as a note
        told = f"{type(error).__name__}: {error}"
        return f"{told} (hint: {error.hint})" if error.hint else told
    text = "".join(traceback.format_exception_only(error)).strip()
    text = text.removeprefix(f"{type(error).__module__}.")
    place = place_of(error)
    return f"{text[:LONGEST]} ({place})" if place else text[:LONGEST]


def place_of(error: BaseException) -> str:
    """Where in the user's own code `error` came up: the innermost frame outside Mainspring and installed packages."""
    installed = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    not_theirs = (*installed, str(Path(mainspring.__path__[0])), "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(not_theirs)]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name}" if frames else ""


def exit_code(error: BaseException) -> int:
    """The exit status that `error` stands for."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        return 1
    return error.exit_code if isinstance(error, MainspringError) else 1


def main() -> None:
    """Run the order on standard input; the exit status says how it went."""
    report, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    signal.signal(signal.SIGTERM, _on_sigterm)
    signal.signal(NOTICE, _on_sigterm)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the driver, which then stops us in order
    faulthandler.enable()
    order = json.load(sys.stdin)
    task = Task(**order["task"])
    apply(Bounds(**order["bounds"]))
    logs.configure("INFO")
    quiet_third_parties()
    if not order["heeds"]:
        let_through()
    try:
        entry = _loaded(order["entry"])
        entry(task, order["payload"])
        gc.freeze()  # nobody looks for cycles in what ends now
    except BaseException as error:  # noqa: BLE001 the edge of the process: report, log, exit
        code = exit_code(error)
        if code:
            _fail(error, code=code, report=report)


def _loaded(entry: str) -> Callable[..., Any]:
    """The entry point. What imports leave is no garbage, and not looked through for any, now or later.

    Torch makes half a million objects: with collections among them a rank took a third more seconds to be there.
    """
    gc.disable()
    try:
        return load_entry(entry)
    finally:
        gc.freeze()
        gc.enable()


def _fail(error: BaseException, *, code: int, report: int) -> None:
    """Report, log and leave at once: a stuck non-daemon thread must not keep a failed rank, and its gang, alive."""
    with contextlib.suppress(BrokenPipeError):
        os.write(report, json.dumps({"at_s": time.time(), "reason": describe(error)[:2000]}).encode())
    if not isinstance(error, SystemExit) or error.__context__ is not None or not isinstance(error.code, int):
        traceback.print_exception(error)
    sys.stdout.flush()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(NOTICE, signal.SIG_IGN)
    sys.exit(LEFT)


if __name__ == "__main__":
    main()
