"""Many small tasks on one gang: rank 0 gives out blocks, every rank does them, and the scheduler decides once.

The entry of `mainspring job map`. Each rank writes the answers of a block to its own file before it reports the block,
and takes them out again when the block was not its own any more. Ranks speak JSON lines over TCP with rank 0.
"""

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mainspring.cluster.blocks import Blocks, finish, take
from mainspring.spec import Failed, SpecError, Task
from mainspring.spec.plugin import load_entry

ENTRY = "mainspring.cluster.tasks:work"
WAIT_S = 0.2
REACH_S = 60.0


def work(task: Task, payload: Mapping[str, Any]) -> None:
    """Call `payload["entry"]` on every one of `payload["items"]`; answers go to `answers-RANK.jsonl`.

    An item that raises ends the job, as any rank's failure does; what was done before is in the files.
    """
    call, items = load_entry(payload["entry"]), payload["items"]
    host, _, port = task.master.rpartition(":")
    counter: Counter | None = None
    if task.rank == 0:
        counter = Counter(int(port), Blocks(total=len(items), holders=task.world, **payload.get("blocks", {})))
        counter.open()
    try:
        with (
            Line(host, int(port), rank=task.rank) as line,
            (Path(task.run_dir) / f"answers-{task.rank}.jsonl").open("w", encoding="utf-8") as answers,
        ):
            done = _do_all(line, call, items, answers)
        print(f"rank {task.rank} did {done} of {len(items)} tasks", flush=True)  # noqa: T201 a rank's log
    finally:
        if counter is not None:
            counter.close()


def _do_all(line: "Line", call: Callable[[Any], Any], items: list[Any], answers: Any) -> int:
    done, pause = 0, threading.Event()
    while not (told := line.ask({"do": "take"}))["over"]:
        if told["count"] == 0:
            pause.wait(WAIT_S)
            continue
        begin = answers.tell()
        for number in range(told["first"], told["first"] + told["count"]):
            answers.write(json.dumps({"item": number, "answer": call(items[number])}) + "\n")
        answers.flush()
        if line.ask({"do": "finish", "first": told["first"]})["kept"]:
            done += told["count"]
        else:
            answers.seek(begin)
            answers.truncate()
    line.ask({"do": "leave"})
    return done


class Counter:
    """Rank 0's side: gives out blocks until every task is done and every rank has heard so."""

    def __init__(self, port: int, blocks: Blocks) -> None:
        self.blocks = blocks
        self._lock = threading.Lock()
        self._left = threading.Semaphore(0)
        self._server = _Server(("", port), _Caller)
        self._server.answer = self.answer
        self._thread = threading.Thread(target=self._server.serve_forever, name="blocks", daemon=True)

    def open(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Wait until every rank has left, when all is done, and stop listening."""
        if self.blocks.over:
            for _ in range(self.blocks.holders):
                self._left.acquire(timeout=REACH_S)
        self._server.shutdown()
        self._server.server_close()

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What to tell a rank."""
        now_ms = round(1000 * time.monotonic())
        with self._lock:
            if asked["do"] == "take":
                lease = take(self.blocks, asked["rank"], now_ms=now_ms)
                first, count = (lease.first, lease.count) if lease else (0, 0)
                return {"over": self.blocks.over, "first": first, "count": count}
            if asked["do"] == "finish":
                return {"kept": finish(self.blocks, asked["first"], asked["rank"], now_ms=now_ms)}
        self._left.release()
        return {}


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    answer: Callable[[Mapping[str, Any]], dict[str, Any]]


class _Caller(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        for line in self.rfile:
            self.wfile.write(json.dumps(self.server.answer(json.loads(line))).encode() + b"\n")


class Line:
    """A rank's connection to rank 0, which may not be there yet."""

    def __init__(self, host: str, port: int, *, rank: int) -> None:
        self._rank = rank
        deadline_s = time.monotonic() + REACH_S
        while True:
            try:
                self._socket = socket.create_connection((host, port), timeout=REACH_S)
                break
            except OSError as error:
                if time.monotonic() > deadline_s:
                    raise Failed(f"rank 0 at {host}:{port} does not answer: {error}") from error
                threading.Event().wait(WAIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rw", encoding="utf-8")

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Rank 0's answer. `Failed` when it has gone."""
        self._file.write(json.dumps({**asked, "rank": self._rank}) + "\n")
        self._file.flush()
        told = self._file.readline()
        if not told:
            raise Failed("rank 0 has gone", hint="its log says why")
        return json.loads(told)


def read_items(path: Path) -> list[Any]:
    """Items of a JSON-lines file. `SpecError` names the line that is none."""
    items: list[Any] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}", hint="give a file of JSON lines") from error
    for number, line in enumerate(lines, start=1):
        try:
            items += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise SpecError(f"line {number} of {path} is not JSON: {error}") from error
    if not items:
        raise SpecError(f"{path} has no items", hint="one JSON value a line")
    return items
