"""The copy on the driver equals the folder on the node, whatever happened to the files in between."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mainspring.cluster import mirror
from mainspring.cluster.mirror import PIECE_BYTES, Mirror, followed, grown, listing, read_piece, write_piece

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from(["a.log", "sub/m.jsonl"]), st.binary(max_size=40)),
        st.tuples(st.just("replace"), st.sampled_from(["a.log", "sub/m.jsonl"]), st.binary(max_size=40)),
        st.tuples(st.just("poll"), st.just(""), st.just(b"")),
    ),
    max_size=20,
)


def act(node: Path, what: str, name: str, data: bytes) -> None:
    path = node / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "append":
        with path.open("ab") as file:
            file.write(data)
    else:
        fresh = path.with_name("fresh.tmp")
        fresh.write_bytes(data)
        fresh.replace(path)


@given(steps)
def test_followed_files_end_up_equal_after_any_sequence_of_appends_and_replacements(tmp_path_factory, steps):
    node, copy = tmp_path_factory.mktemp("node"), tmp_path_factory.mktemp("copy")
    mirror = Mirror(copy)
    for what, name, data in steps:
        if what == "poll":
            mirror.apply(grown(node, mirror.cursors))
        else:
            act(node, what, name, data)
    mirror.apply(grown(node, mirror.cursors))
    assert grown(node, mirror.cursors) == ()
    ours = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    theirs = {path.relative_to(node): path.read_bytes() for path in node.rglob("*") if path.is_file()}
    assert ours == theirs


def test_growth_is_sent_once_and_in_bounded_pieces(tmp_path):
    node, copy = tmp_path / "node", tmp_path / "copy"
    node.mkdir()
    (node / "a.log").write_bytes(b"x" * (PIECE_BYTES + 10))
    mirror = Mirror(copy)
    first = grown(node, mirror.cursors)
    assert sum(len(chunk.data) for chunk in first) == PIECE_BYTES
    mirror.apply(first)
    assert [len(chunk.data) for chunk in grown(node, mirror.cursors)] == [10]


def test_a_rank_that_writes_much_does_not_keep_the_others_waiting(tmp_path):
    (tmp_path / "rank-0.log").write_bytes(b"x" * (3 * PIECE_BYTES))
    (tmp_path / "rank-1.log").write_bytes(b"hello")
    first = grown(tmp_path, {})
    assert {chunk.path: len(chunk.data) for chunk in first} == {"rank-0.log": PIECE_BYTES // 2, "rank-1.log": 5}


def test_a_file_that_is_removed_or_cannot_be_read_loses_no_gang(tmp_path, monkeypatch):
    (tmp_path / "a.log").write_text("here")
    (tmp_path / "b.txt").write_text("not for long")
    monkeypatch.setattr(mirror, "followed", lambda _: ("a.log", "b.txt", "gone.txt"))
    assert {chunk.path for chunk in grown(tmp_path, {})} == {"a.log", "b.txt"}


def test_an_answer_that_was_lost_is_asked_for_again(tmp_path):
    (tmp_path / "a.log").write_bytes(b"hello")
    mirror = Mirror(tmp_path / "copy")
    assert grown(tmp_path, mirror.cursors) == grown(tmp_path, mirror.cursors)


def test_other_files_are_copied_whole_and_leave_no_partial_name(tmp_path):
    node = tmp_path / "node"
    (node / "ckpt").mkdir(parents=True)
    (node / "ckpt/w.bin").write_bytes(b"w" * 1000)
    (node / "a.log").write_text("followed")
    (node / "link").symlink_to(node / "ckpt")
    mirror = Mirror(tmp_path / "copy")
    mirror.copy(listing(node), lambda name, offset: read_piece(node, name, offset=offset, size=300))
    assert [p.name for p in (tmp_path / "copy").rglob("*") if p.is_file()] == ["w.bin"]
    assert (tmp_path / "copy/ckpt/w.bin").read_bytes() == b"w" * 1000


def test_what_is_handed_back_piece_by_piece_is_the_same_file(tmp_path):
    driver, node = tmp_path / "driver", tmp_path / "node"
    (driver / "sub").mkdir(parents=True)
    text = bytes(range(256)) * 100
    (driver / "sub" / "metrics.jsonl").write_bytes(text)
    (driver / "result.json").write_text("{}")
    assert followed(driver) == ("sub/metrics.jsonl",)
    for offset in range(0, len(text), 1000):
        write_piece(node, read_piece(driver, "sub/metrics.jsonl", offset=offset, size=1000))
    assert (node / "sub" / "metrics.jsonl").read_bytes() == text
