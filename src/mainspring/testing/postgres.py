"""A throwaway PostgreSQL server from the system's packages, for tests.

PostgreSQL refuses to run as root, so under root it runs as `postgres` or `nobody`. It listens on a Unix socket in its
own folder only, and it dies with the process that started it (`setpriv --pdeathsig`), however that ends.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER = "mainspring"
START_S = 30.0


class NoPostgres(Exception):
    """PostgreSQL cannot be started here; the message says why."""


@contextmanager
def running_postgres() -> Iterator[Path]:
    """Run a server until the block ends; yields the folder of its socket."""
    initdb, postgres, ready = (_program(name) for name in ("initdb", "postgres", "pg_isready"))
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="ms-pg-"))  # a Unix socket's path must stay below 108 bytes
    try:
        as_user: dict[str, Any] = {"cwd": folder}
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
            as_user |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data = folder / "data"
        made = subprocess.run(
            [initdb, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", f"--username={USER}", data],
            capture_output=True, text=True, check=False, **as_user,
        )  # fmt: skip
        if made.returncode:
            raise NoPostgres(f"initdb failed: {made.stderr.strip()[-300:]}")
        options = {"listen_addresses": "", "unix_socket_directories": str(folder), "fsync": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        setpriv = shutil.which("setpriv")
        mortal = [setpriv, "--pdeathsig", "QUIT"] if setpriv else []
        log = folder / "log"
        with log.open("wb") as sink:
            server = subprocess.Popen([*mortal, postgres, "-D", data, *settings], stdout=sink, stderr=sink, **as_user)
        try:
            _wait_until_ready(server, [ready, "-q", "-h", str(folder), "-U", USER, "-d", "postgres"], log)
            yield folder
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(START_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def empty_database(socket_folder: Path) -> str:
    """The SQLAlchemy URL of the server's one database, emptied: much cheaper than a new one for every test."""
    psql = [_program("psql"), "-q", "-h", str(socket_folder), "-U", USER, "-d", "postgres"]
    again = "SET client_min_messages = warning; DROP SCHEMA public CASCADE; CREATE SCHEMA public"
    subprocess.run([*psql, "-c", again], check=True, capture_output=True)
    return f"postgresql://{USER}@/postgres?host={socket_folder}"


def _program(name: str) -> str:
    found = shutil.which(name)
    if found:
        return found
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not packaged:
        raise NoPostgres(f"{name} is not installed (apt install postgresql)")
    return str(packaged[-1])


def _unprivileged() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoPostgres("PostgreSQL refuses to run as root and there is no user postgres or nobody")


def _wait_until_ready(server: subprocess.Popen[Any], probe: list[str], log: Path) -> None:
    deadline, pause = time.monotonic() + START_S, threading.Event()
    while subprocess.run(probe, check=False).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            raise NoPostgres(f"the server did not start: {log.read_text(errors='replace')[-300:]}")
        pause.wait(0.05)
