"""Reading folders and files: what becomes a document, what is skipped, and why."""

import os
import signal
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from mainspring.data.documents import document_id
from mainspring.data.read import read
from mainspring.data.readers.extract import ExtractionFailed, Extractor
from mainspring.spec import NotFound, SpecError

PROSE = "Plain text with enough letters to be a document.\n"


def rows(source: Path | str) -> dict[str, dict[str, str]]:
    return {row["source"]: row for row in read(str(source))[0].to_pylist()}


def reasons(source: Path) -> dict[str, str]:
    return {item.source: item.reason for item in read(str(source))[1]}


def pdf(text: str) -> bytes:
    """The smallest PDF with one line of text and a right cross-reference table."""
    content = f"BT /F1 24 Tf 72 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(out)
    return out + b"xref\n0 6\n0000000000 65535 f \n" + table + trailer


def docx(path: Path, text: str) -> None:
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType='
            f'"application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" '
            f'ContentType="{kind}"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{office}" '
            f'Target="word/document.xml"/></Relationships>',
        )
        archive.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{word}"><w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>',
        )


def test_every_format_becomes_text_with_a_title(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "guide").mkdir(parents=True)
    (folder / "guide" / "a.md").write_text("# Getting started\n\nRead me.\n")
    (folder / "b.txt").write_text(PROSE)
    (folder / "c.html").write_text(
        "<html><head><title>The page</title><meta name=description content=x></head><body><nav>menu</nav>"
        "<h2>Section</h2><p>Some <b>bold</b> words.</p><ul><li>one</li></ul></body></html>"
    )
    (folder / "d.pdf").write_bytes(pdf("Words inside a PDF file"))
    docx(folder / "e.docx", "Words inside an office file")
    found = rows(folder)
    assert list(found) == ["docs/b.txt", "docs/c.html", "docs/d.pdf", "docs/e.docx", "docs/guide/a.md"]
    assert found["docs/guide/a.md"]["title"] == "Getting started"
    assert found["docs/b.txt"]["title"] == "b"
    page = found["docs/c.html"]
    assert "## Section" in page["text"]
    assert "**bold**" in page["text"]
    assert "- one" in page["text"]
    assert "menu" not in page["text"]
    assert "The page" not in page["text"]
    assert page["title"] == "Section"
    assert "Words inside a PDF file" in found["docs/d.pdf"]["text"]
    assert "Words inside an office file" in found["docs/e.docx"]["text"]
    assert all(row["id"] == document_id(row["source"], row["text"]) for row in found.values())


def test_what_cannot_be_read_is_skipped_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text(PROSE)
    (tmp_path / "empty.md").write_bytes(b"")
    (tmp_path / "blank.txt").write_text(" \n\n ")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "corrupt.pdf").write_bytes(b"%PDF-1.7\n" + os.urandom(2000))
    (tmp_path / "truncated.pdf").write_bytes(pdf("x")[:150])
    (tmp_path / "fake.docx").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nothing")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    os.mkfifo(tmp_path / "pipe.txt")
    table, skipped = read(str(tmp_path))
    assert [Path(source).name for source in table["source"].to_pylist()] == ["good.md"]
    assert sum(item.files for item in skipped) == 10
    why = {Path(source).name: reason for source, reason in reasons(tmp_path).items()}
    assert why["empty.md"] == "empty"
    assert why["blank.txt"] == "holds no text"
    assert why["binary.txt"].startswith("binary")
    assert why["corrupt.pdf"].startswith("not a readable pdf file")
    assert why["truncated.pdf"].startswith("not a readable pdf file")
    assert why["fake.docx"].startswith("not a readable docx file")
    assert "No such file" in why["gone.md"]
    assert "not a regular file" in why["pipe.txt"]
    assert why["*.png (2 files)"] == "no reader for this format"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text(PROSE)
    (tmp_path / "secret.md").write_text(PROSE)
    (tmp_path / "secret.md").chmod(0)
    assert "Permission denied" in next(iter(reasons(tmp_path).values()))


def test_a_line_of_100_megabytes_is_skipped_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text(PROSE)
    with (tmp_path / "line.txt").open("wb") as file:
        file.truncate(100_000_000)
    tracemalloc.start()
    try:
        why = reasons(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(why.values()) == ["too large: 100.0 MB, the limit is 16.8 MB"]
    assert peak < 10_000_000


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    inner = tmp_path / "docs" / "inner"
    inner.mkdir(parents=True)
    (inner / "a.md").write_text(PROSE)
    (inner / "up").symlink_to(tmp_path / "docs")
    table, skipped = read(str(tmp_path / "docs"))
    assert table["source"].to_pylist() == ["docs/inner/a.md"]
    assert [item.reason for item in skipped] == ["link to a folder that is read already"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("\ufeffGr\u00fc\u00dfe aus M\u00fcnchen".encode(), "Gr\u00fc\u00dfe aus M\u00fcnchen"),
        ("Gr\u00fc\u00dfe aus M\u00fcnchen".encode("utf-16"), "Gr\u00fc\u00dfe aus M\u00fcnchen"),
        (
            b"\xff\xfe\x00\x00" + "Gr\u00fc\u00dfe aus M\u00fcnchen".encode("utf-32-le"),
            "Gr\u00fc\u00dfe aus M\u00fcnchen",
        ),
        (
            "An ordinary letter with an \u20ac and caf\u00e9".encode("cp1252"),
            "An ordinary letter with an \u20ac and caf\u00e9",
        ),
        ("coding: gb18030\n\u4f60\u597d\u4e16\u754c".encode("gb18030"), "coding: gb18030\n\u4f60\u597d\u4e16\u754c"),
        (b"one\r\ntwo\rthree", "one\ntwo\nthree"),
    ],
)
def test_encodings_are_recognised_by_mark_declaration_or_share(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert next(iter(rows(path).values()))["text"] == expected


def test_text_in_an_undeclared_foreign_encoding_is_refused_not_garbled(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(
        "\u4f60\u597d\u4e16\u754c\uff0c\u8fd9\u662f\u4e00\u4e2a\u6d4b\u8bd5".encode("gb18030")
    )
    with pytest.raises(SpecError, match="unknown encoding: not UTF-8 at byte 0"):
        read(str(tmp_path))


def test_html_in_a_declared_encoding_is_decoded(tmp_path: Path) -> None:
    html = (
        "<html><head><meta charset='shift_jis'></head><body><p>\u65e5\u672c\u8a9e\u306e\u6587\u66f8</p></body></html>"
    )
    (tmp_path / "a.html").write_bytes(html.encode("shift_jis"))
    assert "\u65e5\u672c\u8a9e\u306e\u6587\u66f8" in next(iter(rows(tmp_path).values()))["text"]


def test_a_file_name_that_is_not_unicode_does_not_stop_the_folder(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md")).write_text(PROSE)
    assert [Path(source).name for source in rows(tmp_path)] == ["caf\ufffd.md"]


def test_a_glob_names_files_as_the_folder_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "deep" / "a.md").write_text(PROSE)
    (tmp_path / "docs" / "b.txt").write_text(PROSE)
    monkeypatch.chdir(tmp_path)
    assert list(rows("docs/**/*.md")) == ["docs/deep/a.md"]
    assert list(rows(tmp_path / "docs" / "**" / "*.md")) == ["docs/deep/a.md"]
    assert list(rows("docs")) == ["docs/b.txt", "docs/deep/a.md"]


@pytest.mark.parametrize("source", ["no/such/folder", "no/such/*.md"])
def test_a_missing_source_is_not_found(source: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        read(str(tmp_path / source))
    assert caught.value.hint


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds no readable document"):
        read(str(tmp_path))


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_source_is_not_the_folder_one_is_in(source: str) -> None:
    with pytest.raises(SpecError, match="source is empty"):
        read(source)


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(SpecError) as caught:
        read("notion:team-wiki")
    assert "python" in caught.value.hint


def test_a_parser_that_dies_costs_one_file() -> None:
    extractor = Extractor()
    try:
        assert "first" in extractor.extract(b"<p>first file</p>", "html")[0]
        assert extractor._child is not None
        os.kill(extractor._child.pid, signal.SIGKILL)
        with pytest.raises(ExtractionFailed, match="crashed"):
            extractor.extract(b"<p>second file</p>", "html")
        assert "third" in extractor.extract(b"<p>third file</p>", "html")[0]
    finally:
        extractor.close()


def test_a_parser_that_hangs_is_stopped() -> None:
    extractor = Extractor(timeout_s=0.3)
    try:
        extractor._start()
        assert extractor._child is not None
        os.kill(extractor._child.pid, signal.SIGSTOP)
        with pytest.raises(ExtractionFailed, match="took over"):
            extractor.extract(b"<p>slow file</p>", "html")
        assert extractor._child is None
    finally:
        extractor.close()
