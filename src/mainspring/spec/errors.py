"""Every error a caller can act on, in one tree, grouped by what the caller can do about it.

    MainspringError
    ├── SpecError            the request is wrong; nothing was started            exit 2    HTTP 400
    │   ├── DoesNotFit       no plan, context or device is large enough           exit 2    HTTP 400
    │   ├── NotFound         the thing named does not exist                       exit 2    HTTP 404
    │   └── Denied           the token is missing, wrong or too weak              exit 77   HTTP 401
    ├── Unavailable          try again later: quota, capacity, disk, a dependency exit 75   HTTP 503
    └── Failed               the work started and did not finish                  exit 1    HTTP 500
        ├── WorkerLost       a process or node went away                          exit 1    HTTP 500
        └── Cancelled        somebody stopped it                                  exit 130  HTTP 409

A third-party exception never crosses a room's public function: it is re-raised as one of these with
`raise ... from`. A message says what, which and the two numbers; `hint` says what the reader can do next, and the
CLI prints it under the message.
"""

from typing import ClassVar


class MainspringError(Exception):
    """Base of all errors raised on purpose."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    hint: str

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # what a traceback in a script or a notebook shows

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the hint, so that errors cross process boundaries whole."""
        return (_rebuild, (type(self), str(self), self.hint))


def _rebuild(kind: type[MainspringError], message: str, hint: str) -> MainspringError:
    return kind(message, hint=hint)


class SpecError(MainspringError):
    """The request is wrong; nothing was started."""

    exit_code = 2
    http_status = 400


class DoesNotFit(SpecError):
    """No plan, context or device is large enough."""


class NotFound(SpecError):
    """The thing named does not exist."""

    http_status = 404


class Denied(SpecError):
    """The token is missing, wrong or too weak."""

    exit_code = 77
    http_status = 401


class Unavailable(MainspringError):
    """Try again later: quota, capacity, disk space, or a dependency is down."""

    exit_code = 75
    http_status = 503


class Failed(MainspringError):
    """The work started and did not finish."""


class WorkerLost(Failed):
    """A process or node went away."""


class Cancelled(Failed):
    """Somebody stopped it."""

    exit_code = 130
    http_status = 409
