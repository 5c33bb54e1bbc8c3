"""How a rank hears that it has to make room for others, and how it leaves.

A gang that is stopped for others, or whose node is drained, is sent `NOTICE`. A rank that does nothing about it ends as
if it had been told to stop: by `SystemExit`, so that its `finally` blocks run. One that can save what it has calls
`heed`, looks at the event where its state is whole (in training: between two steps), saves, and calls `leave`. Ranks
that end with 0 instead have come to the end of their work. The gang is killed when its `Job.grace_s` is over, and
started again later, perhaps elsewhere and on other ranks.

The signal is held back until a rank is ready for it: until the entry is called, and for a job that `heeds` until it
says so. Otherwise one rank might leave while the others wait for it to join them.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn

NOTICE = signal.SIGUSR1
LEFT = 128 + signal.SIGTERM
"""The exit status of a rank that was stopped, which is no failure of its own."""


def heed() -> threading.Event:
    """From now on, what is set when this rank has to make room. Called by the main thread."""
    asked = threading.Event()
    signal.signal(NOTICE, lambda _signal, _frame: asked.set())
    let_through()
    return asked


def let_through() -> None:
    """Hear the signal from now on, and one that has come before."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {NOTICE})


@contextmanager
def held_back() -> Generator[None]:
    """Processes that this thread starts meanwhile do not hear the signal until they `let_through`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {NOTICE})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave() -> NoReturn:
    """End this rank: it has saved what it has, and is to be started again."""
    raise SystemExit(LEFT)
