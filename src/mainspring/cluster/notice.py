"""How a rank hears that it has to make room for others, and how it leaves.

A gang that is stopped for others, or whose node is drained, is sent `NOTICE`. A rank that does nothing about it ends as
if it had been told to stop: by `SystemExit`, so that its `finally` blocks run. One that can save what it has calls
`heed`, looks at the event where its state is whole (in training: between two steps), saves, and calls `leave`. Ranks
that end with 0 instead have come to the end of their work. The gang is killed when its `Job.grace_s` is over, and
started again later, perhaps elsewhere and on other ranks.
"""

import signal
import threading
from typing import NoReturn

NOTICE = signal.SIGUSR1
LEFT = 128 + signal.SIGTERM
"""The exit status of a rank that was stopped, which is no failure of its own."""


def heed() -> threading.Event:
    """From now on, what is set when this rank has to make room. Called by the main thread."""
    asked = threading.Event()
    signal.signal(NOTICE, lambda _signal, _frame: asked.set())
    return asked


def leave() -> NoReturn:
    """End this rank: it has saved what it has, and is to be started again."""
    raise SystemExit(LEFT)
