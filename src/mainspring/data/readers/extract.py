"""HTML, PDF and office files to Markdown, in a process of its own.

The parsers (kreuzberg, and PDFium inside it) are native code that reads hostile input: a file that crashes them, loops
or asks for too much memory must cost that file and nothing else. So they run in a child, started on the first file
that needs one and restarted after a loss. It is a plain subprocess and not `multiprocessing`, whose spawn would run
the caller's script a second time. Protocol: a JSON line and the bytes in, a JSON line out.
"""

import contextlib
import json
import os
import resource
import selectors
import subprocess
import sys
import time
from io import BufferedReader
from typing import BinaryIO

MIME = {
    "html": "text/html",
    "pdf": "application/pdf",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "doc": "application/msword",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "ppt": "application/vnd.ms-powerpoint",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "xls": "application/vnd.ms-excel",
    "odt": "application/vnd.oasis.opendocument.text",
    "rtf": "application/rtf",
    "epub": "application/epub+zip",
}
TIMEOUT_S = 120.0
MEMORY_BYTES = 4 << 30


class ExtractionFailed(ValueError):
    """The file could not be turned into text; the message says why."""


class Extractor:
    """The child process, and a way to ask it. Close it when done."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def extract(self, data: bytes, kind: str) -> tuple[str, str]:
        """Markdown and title of `data`, whose format is `kind`. Raises `ExtractionFailed`."""
        child = self._child or self._start()
        assert child.stdin is not None
        assert isinstance(child.stdout, BufferedReader)
        try:
            child.stdin.write(json.dumps({"kind": kind, "size": len(data)}).encode() + b"\n" + data)
            child.stdin.flush()
            answer = self._answer(child.stdout)
        except (BrokenPipeError, EOFError):
            self.close()
            raise ExtractionFailed(f"the {kind} parser crashed on it (exit status {child.returncode})") from None
        except TimeoutError:
            child.kill()
            self.close()
            raise ExtractionFailed(f"the {kind} parser took over {self._timeout_s:.0f} s") from None
        if "error" in answer:
            raise ExtractionFailed(answer["error"])
        return answer["text"], answer["title"]

    def close(self) -> None:
        """Stop the child if there is one."""
        if self._child is None:
            return
        child, self._child = self._child, None
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(BrokenPipeError):  # it is already gone
                if pipe:
                    pipe.close()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self._child

    def _answer(self, pipe: BufferedReader) -> dict[str, str]:
        """One JSON line, within the time limit."""
        line = bytearray()
        deadline = time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(deadline - time.monotonic()):
                    raise TimeoutError
                piece = pipe.read1(1 << 20)
                if not piece:
                    raise EOFError
                line += piece
        return json.loads(line)


def _to_markdown(data: bytes, kind: str) -> dict[str, str]:
    from kreuzberg import ExtractionConfig, KreuzbergError, extract_bytes_sync

    config = ExtractionConfig(use_cache=False, output_format="markdown")
    try:
        result = extract_bytes_sync(data, MIME[kind], config=config)
    except KreuzbergError as error:
        return {"error": f"not a readable {kind} file: {str(error).partition(': ')[2][:200] or error}"}
    text = result.content
    if kind == "html" and text.startswith("---\n"):
        text = _without_front_matter(text)
    return {"text": text, "title": str(result.metadata.get("title") or "")}


def _without_front_matter(text: str) -> str:
    """Drop the metadata block kreuzberg puts before HTML; it ends with a heading `## title: ...`."""
    head, _, rest = text.removeprefix("---\n").partition("\n\n## title: ")
    if rest and all(": " in line for line in head.splitlines()):
        return rest.partition("\n")[2].lstrip("\n")
    return text


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the parent closes its end."""
    while header := requests.readline():
        request = json.loads(header)
        answer = _to_markdown(requests.read(request["size"]), request["kind"])
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever native code prints must not land in the protocol
    _serve(sys.stdin.buffer, out)
