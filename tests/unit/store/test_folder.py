"""Files behind an fsspec URL, as several machines use them."""

from pathlib import Path

import pytest

from mainspring.spec import SpecError, Unavailable
from mainspring.store.folder import RemoteFolder


@pytest.fixture
def bucket(tmp_path: Path) -> RemoteFolder:
    return RemoteFolder(f"local://{tmp_path}/bucket/")


def test_what_one_process_writes_another_lists_and_reads(bucket: RemoteFolder) -> None:
    other = RemoteFolder(bucket.url)
    assert bucket.files() == ()
    other.write("a/b/c", b"one")
    other.write("d", b"two")
    assert bucket.files() == ("a/b/c", "d")
    assert bucket.read("a/b/c") == b"one"
    assert bucket.digest("d") == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
    other.write("d", b"three")
    assert bucket.read("d") == b"three"
    other.remove("a")
    other.remove("a")
    assert bucket.files() == ("d",)


def test_missing_is_one_thing_and_out_of_reach_another(bucket: RemoteFolder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bucket.read("nothing")
    (tmp_path / "bucket" / "folder").mkdir(parents=True)
    with pytest.raises(Unavailable, match=r"cannot read .*folder: IsADirectoryError"):
        bucket.read("folder")


def test_an_unknown_scheme_is_named_and_the_rest_of_the_url_is_not(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot use warp://") as caught:
        RemoteFolder("warp://user:hunter2@host/bucket")
    assert "hunter2" not in str(caught.value)
