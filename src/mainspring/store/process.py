"""Who is doing something, told so that another process can later say whether they are still alive.

A process id alone is reused within hours and means nothing on another machine or in another container; with the
boot id, the process-id namespace and the start time in clock ticks (`/proc/<pid>/stat`, field 22) it names one
process for good. Where `/proc` is missing the extra fields are empty and only the process id is compared. Fresh
virtual machines are often all called the same, so a host is its name and a digest of its machine id.
"""

import functools
import hashlib
import os
import socket
from pathlib import Path

from mainspring.spec import spec


@spec
class Owner:
    """One process on one boot of one machine."""

    host: str
    boot: str
    namespace: str
    pid: int
    born: str


def this_process() -> Owner:
    """The calling process."""
    return _owner(os.getpid())


@functools.lru_cache(maxsize=1)
def _owner(pid: int) -> Owner:  # cached by its own number, because a fork is another process
    return Owner(host=_host(), boot=_boot(), namespace=_namespace(), pid=pid, born=_born(pid) or "")


def is_gone(owner: Owner) -> bool:
    """Whether `owner` certainly no longer runs. False when it cannot be judged from here."""
    return owner.host == _host() and (
        owner.boot != _boot() or (owner.namespace == _namespace() and _born(owner.pid) != owner.born)
    )


def is_alive(owner: Owner) -> bool:
    """Whether `owner` certainly still runs. False when it cannot be judged from here."""
    here = (owner.host, owner.boot, owner.namespace) == (_host(), _boot(), _namespace())
    return here and _born(owner.pid) == owner.born


@functools.cache
def _host() -> str:
    machine = _read("/etc/machine-id")
    return f"{socket.gethostname()}-{hashlib.sha256(machine.encode()).hexdigest()[:8]}"


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """The start time of `pid` in clock ticks since boot, "" where /proc is missing, None when it is not running."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() or not _answers(pid) else ""
    except ProcessLookupError:
        return None
    # The command name in parentheses may itself hold spaces and parentheses; the fields after the last one are plain.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
