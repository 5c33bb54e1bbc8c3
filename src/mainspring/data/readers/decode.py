"""Bytes to text, without guessing wildly: a wrong guess poisons a corpus quietly, a skipped file is reported.

Order: byte-order mark, UTF-8, an encoding the file declares, then Windows-1252 when nearly all bytes are ASCII.
Anything else is refused with its reason.
"""

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark starts with the UTF-16 one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# HTML `<meta charset=...>`, XML `encoding="..."`, and the `coding: ...` of PEP 263 and Emacs.
_DECLARED = re.compile(rb"""(?:charset|encoding|coding)\s*[=:]\s*["']?([A-Za-z0-9_.:-]+)""")
_HEAD_BYTES = 2048
_SAMPLE_BYTES = 65536
_BINARY_SHARE = 0.02
_WESTERN_SHARE = 0.15  # more non-ASCII than this in no declared encoding is not Western European text


class Undecodable(ValueError):
    """The bytes are not text in a known encoding; the message says why."""


def decode(data: bytes) -> str:
    """`data` as text with `\\n` line ends. Raises `Undecodable`."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _strict(data, encoding)
    sample = data[:_SAMPLE_BYTES]
    control = sum(sample.count(byte) for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")
    if control > _BINARY_SHARE * len(sample) or b"\0" in sample:
        raise Undecodable(f"binary: {control} control characters in the first {len(sample)} bytes")
    try:
        return _newlines(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _decode_legacy(data, error)


def _decode_legacy(data: bytes, error: UnicodeDecodeError) -> str:
    declared = _DECLARED.search(data[:_HEAD_BYTES])
    if declared:
        return _strict(data, declared[1].decode("ascii"))
    high = len(data) - len(data.translate(None, bytes(range(128, 256))))
    if high <= _WESTERN_SHARE * len(data):
        return _strict(data, "cp1252")
    raise Undecodable(
        f"unknown encoding: not UTF-8 at byte {error.start}, and {high / len(data):.0%} of it is not ASCII"
    )


def _strict(data: bytes, encoding: str) -> str:
    try:
        return _newlines(data.decode(encoding))
    except (UnicodeDecodeError, LookupError) as error:
        raise Undecodable(f"not {encoding}: {error}") from error


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
