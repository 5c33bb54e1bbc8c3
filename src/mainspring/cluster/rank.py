"""The main program of one rank: `python -m mainspring.cluster.rank REPORT_FD PARENT_PID < order.json`.

Started by the node agent in its own session, with stdout and stderr in `rank-N.log`. Dies with the agent
(PR_SET_PDEATHSIG), turns SIGTERM into `SystemExit` so that `finally` blocks run, calls the entry point, and tells
the agent over REPORT_FD why it failed at the moment it does: before interpreter shutdown, which can take seconds.
"""

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
import time
import traceback
from types import FrameType

from mainspring.spec import MainspringError, Task, logs
from mainspring.spec.plugin import load_entry
from mainspring.spec.settings import quiet_third_parties

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TERMINATED = 128 + signal.SIGTERM


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent goes, and go now if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def describe(error: BaseException) -> str:
    """`ExceptionType: message`, looking through the SystemExit that a SIGTERM raised over a real exception."""
    if isinstance(error, SystemExit) and error.code == _TERMINATED:
        cause = error.__context__
        return describe(cause) if isinstance(cause, Exception) else ""
    text = "".join(traceback.format_exception_only(error)).strip()
    hint = f" (hint: {error.hint})" if isinstance(error, MainspringError) and error.hint else ""
    return text.removeprefix(f"{type(error).__module__}.") + hint


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the driver, which then stops us in order
    faulthandler.enable()
    order = json.load(sys.stdin)
    task = Task(**order["task"])
    logs.configure("INFO")
    quiet_third_parties()
    try:
        load_entry(order["entry"])(task, order["payload"])
    except BaseException as error:  # noqa: BLE001 the edge of the process: report, log, exit
        code = exit_code(error)
        if code:
            _fail(error, code=code, report=report)


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
    sys.exit(_TERMINATED)


if __name__ == "__main__":
    main()
