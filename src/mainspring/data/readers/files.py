"""Files, folders and globs as documents.

Limits, so that memory stays bounded whatever is in the folder: a file of text is at most `MAX_TEXT_BYTES`, a PDF or
office file `MAX_FILE_BYTES`, and the text taken from it `MAX_TEXT_BYTES` again. Names that start with a dot are not
read. Order is that of the paths, so the same folder always gives the same documents.
"""

import errno
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from mainspring.data.documents import make_document
from mainspring.data.readers.decode import Undecodable, decode
from mainspring.data.readers.extract import ExtractionFailed, Extractor
from mainspring.spec import Document, NotFound, Progress, Skipped, silent

MAX_TEXT_BYTES = 16 << 20
MAX_FILE_BYTES = 128 << 20
FORMATS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".adoc": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".doc": "doc",
    ".pptx": "pptx",
    ".ppt": "ppt",
    ".xlsx": "xlsx",
    ".xls": "xls",
    ".odt": "odt",
    ".rtf": "rtf",
    ".epub": "epub",
}
_DECODED = {"markdown", "text", "html"}
_GLOB = frozenset("*?[")


def read_files(source: str, *, progress: Progress = silent) -> Iterator[Document | Skipped]:
    """Documents of a file, of everything under a folder, or of what a glob matches.

    A document's `source` is its path from the given folder on, that folder's name included, so that it is the same
    on every machine. Raises `NotFound` when nothing exists at `source`.
    """
    root, paths = _find(source)
    unread: Counter[str] = Counter()
    with closing(Extractor()) as extractor:
        for number, path in enumerate(paths):
            if isinstance(path, Skipped):
                yield path
                continue
            name = _name(path, root)
            if path.suffix.lower() not in FORMATS:
                unread[path.suffix.lower() or path.name] += 1
                continue
            progress(number / len(paths), name)
            try:
                yield _read_file(path, name, extractor)
            except (Undecodable, ExtractionFailed) as error:
                yield Skipped(source=name, reason=str(error))
            except OSError as error:
                yield Skipped(source=name, reason=f"cannot be read: {error.strerror or error}")
    for suffix, count in sorted(unread.items()):
        found = f"{count} file{'s' if count > 1 else ''}"
        yield Skipped(source=f"{root.name}/**/*{suffix} ({found})", reason="no reader for this format", files=count)


def _find(source: str) -> tuple[Path, list[Path | Skipped]]:
    """The folder that names are relative to, and every path, sorted."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve(), _walk(path)
    if path.exists():
        return path.parent.resolve(), [path]
    if _GLOB.isdisjoint(source):
        raise NotFound(f"no file or folder at {source!r}", hint=f"the working folder is {Path.cwd()}")
    found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 absolute patterns
    if not found:
        raise NotFound(f"nothing matches {source!r}", hint="quote the pattern; ** reaches into sub-folders")
    return Path(*_until_wildcard(path.parts)).resolve(), [match for match in found if not match.is_dir()]


def _until_wildcard(parts: tuple[str, ...]) -> Iterator[str]:
    for part in parts:
        if not _GLOB.isdisjoint(part):
            return
        yield part


def _walk(root: Path) -> list[Path | Skipped]:
    """Files under `root`, following links to folders, each real folder once."""
    found: list[Path | Skipped] = []
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        found.append(Skipped(source=_printable(str(error.filename)), reason=f"cannot be read: {error.strerror}"))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            found.append(Skipped(source=_printable(folder), reason="link to a folder that is read already"))
            continue
        seen.add((status.st_dev, status.st_ino))
        found += [here / name for name in sorted(files) if not name.startswith(".")]
    return found


def _name(path: Path, root: Path) -> str:
    """`path` from the last part of `root` on, with forward slashes."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 resolve() would replace a link by its target
    for folder in (root, Path(os.path.abspath(root))):  # noqa: PTH100
        if absolute.is_relative_to(folder):
            return _printable((Path(root.name) / absolute.relative_to(folder)).as_posix())
    return _printable(path.as_posix())


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def _read_file(path: Path, name: str, extractor: Extractor) -> Document:
    kind = FORMATS[path.suffix.lower()]
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    limit = MAX_TEXT_BYTES if kind in _DECODED else MAX_FILE_BYTES
    if status.st_size > limit:
        raise Undecodable(f"too large: {status.st_size / 1e6:.1f} MB, the limit is {limit / 1e6:.1f} MB")
    if status.st_size == 0:
        raise Undecodable("empty")
    data = path.read_bytes()
    text, title = _text_and_title(data, kind, extractor)
    if not text.strip():
        raise Undecodable("holds no text" if kind in _DECODED else "holds no text (scanned pages need OCR)")
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise Undecodable(f"too large: its text is over {MAX_TEXT_BYTES / 1e6:.1f} MB")
    return make_document(name, text, title=_heading(text) or title or _printable(path.stem), kind=kind)


def _text_and_title(data: bytes, kind: str, extractor: Extractor) -> tuple[str, str]:
    if kind == "html":
        return extractor.extract(decode(data).encode(), kind)
    return (decode(data), "") if kind in _DECODED else extractor.extract(data, kind)


def _heading(text: str) -> str:
    """The first Markdown heading in the first lines."""
    for line in text[:4096].splitlines():
        if line.startswith("#") and (heading := line.lstrip("#")) and heading[0] == " ":
            return heading.strip(" #")
    return ""
