"""Publishing, finding and fetching artifacts, on a local folder and behind an fsspec URL."""

import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mainspring.spec import Artifact, Failed, NotFound, Settings, SpecError
from mainspring.store import Store
from mainspring.store.artifacts import _walk
from mainspring.store.fetched import Fetched


@pytest.fixture(params=["folder", "memory"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store whose contents lie in a folder or on a (simulated) object store."""
    url = "" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/bucket"
    with Store.open(Settings(home=str(tmp_path / "home"), artifacts_url=url)) as store:
        yield store


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _contents(store: Store) -> list[str]:
    return sorted(store._blobs.digests())


def test_what_was_published_comes_back_byte_for_byte(shelf: Store, folder: Path) -> None:
    artifact = shelf.publish("model", "handbook", folder, meta={"steps": 3})
    assert (artifact.ref, artifact.size_bytes) == ("model:handbook@1", 261)
    fetched = shelf.fetch("model:handbook@1")
    assert _files(fetched) == _files(folder)
    assert shelf.fetch(artifact) == fetched
    assert all(path.stat().st_mode & 0o222 == 0 for path in fetched.rglob("*") if path.is_file())


def test_a_single_file_is_an_artifact_of_one_file(shelf: Store, folder: Path) -> None:
    assert [f.path for f in shelf.publish("report", "r", folder / "a.txt").files] == ["a.txt"]
    assert (shelf.fetch("report:r") / "a.txt").read_text() == "alpha"


def test_links_to_files_are_followed(shelf: Store, folder: Path) -> None:
    (folder / "link.txt").symlink_to(folder / "a.txt")
    shelf.publish("model", "x", folder)
    assert (shelf.fetch("model:x") / "link.txt").read_text() == "alpha"


def test_the_same_content_again_is_the_same_version_and_other_metadata_is_another(store: Store, folder: Path) -> None:
    first = store.publish("model", "x", folder, meta={"a": 1})
    assert store.publish("model", "x", folder, meta={"a": 1}) == first
    assert store.publish("model", "x", folder, meta={"a": 2}).version == 2
    assert store.publish("model", "x", folder, meta={"a": 1}) == first
    assert store.publish("model", "other", folder, meta={"a": 1}).version == 1
    assert [a.version for a in store.artifacts("model", "x")] == [2, 1]
    assert len(_contents(store)) == 2


def test_references_find_versions_tags_and_the_newest(store: Store, folder: Path) -> None:
    one = store.publish("model", "x", folder, meta={"n": 1}, tags=["good"])
    two = store.publish("model", "x", folder, meta={"n": 2})
    assert one.tags == ("good",)
    assert store.resolve("model:x").ref == two.ref
    assert store.resolve("model:x@1") == one
    assert store.resolve("model:x@good") == one
    assert store.tag("model:x@2", "good").tags == ("good",)
    assert store.resolve("model:x@good").ref == two.ref


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("model:handbok", "did you mean model:handbook?"),
        ("dataset:handbook", "did you mean model:handbook?"),
        ("model:handbook@9", "model:handbook has 1, best"),
        ("model:handbook@bset", "model:handbook has 1, best"),
        ("model:handbook@99999999999999999999", "model:handbook has 1, best"),
        ("model:handbook@\u00b2", "model:handbook has 1, best"),
        ("tokens:zzz", "known: model:handbook"),
    ],
)
def test_a_wrong_reference_is_answered_with_the_nearest(store: Store, folder: Path, ref: str, hint: str) -> None:
    store.publish("model", "handbook", folder, tags=["best"])
    with pytest.raises(NotFound) as caught:
        store.resolve(ref)
    assert caught.value.hint == hint


@pytest.mark.parametrize("ref", ["handbook", "", "a:b:c", "model:x@", "model:x y"])
def test_a_malformed_reference_is_refused(store: Store, ref: str) -> None:
    with pytest.raises(SpecError, match="not a reference"):
        store.resolve(ref)


@pytest.mark.parametrize(
    ("kind", "name", "tag"),
    [("Model", "x", "t"), ("model", "../x", "t"), ("model", "a b", "t"), ("model", "", "t"), ("model", "x", "3")],
)
def test_names_that_could_not_be_referred_to_are_refused(
    store: Store, folder: Path, kind: str, name: str, tag: str
) -> None:
    with pytest.raises(SpecError):
        store.publish(kind, name, folder, tags=[tag])
    assert store.artifacts() == ()
    assert _contents(store) == []


def test_nothing_to_publish_is_an_error_that_leaves_nothing(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (folder / "loop").symlink_to(folder)
    (tmp_path / "file").write_text("x")
    for source, kind in ((tmp_path / "missing", NotFound), (tmp_path / "empty", SpecError), (folder, SpecError)):
        with pytest.raises(kind):
            store.publish("model", "x", source)
    for arguments in ({"run": "train-0"}, {"inputs": ["model:none"]}, {"meta": {"a": object()}}):
        with pytest.raises(SpecError):
            store.publish("model", "x", tmp_path / "file", **arguments)
    assert (store.artifacts(), store.events(), _contents(store)) == ((), (), [])
    assert not any((tmp_path / "home" / "artifacts").rglob("partial/*"))


def test_damage_on_disk_is_noticed_told_by_the_doctor_and_mended_by_publishing_again(
    settings: Settings, folder: Path
) -> None:
    with Store.open(settings) as store:
        artifact = store.publish("model", "x", folder)
        blob = next(settings.home_path.glob(f"artifacts/*/blobs/*/{artifact.files[0].digest}"))
        fetched = store.fetch("model:x") / "a.txt"
        blob.chmod(0o644)
        blob.write_text("alphq")
        assert fetched.read_text() == "alphq"  # a hard link, so the damage reaches it, and is noticed there
        with pytest.raises(Failed, match=r"a\.txt has changed on disk"):
            store.fetch("model:x")
        assert [line for line in store.doctor() if "has changed" in line]
        assert store.publish("model", "x", folder) == artifact
        assert store.doctor() == ()
        assert (store.fetch("model:x") / "a.txt").read_text() == "alpha"
        fetched.unlink()
        blob.unlink()
        with pytest.raises(Failed, match=r"a\.txt is missing"):
            store.fetch("model:x")
        assert store.publish("model", "x", folder) == artifact
        assert store.doctor() == ()
        assert (store.fetch("model:x") / "a.txt").read_text() == "alpha"


def test_a_fetched_folder_somebody_changed_is_made_anew(shelf: Store, folder: Path) -> None:
    shelf.publish("model", "x", folder)
    fetched = shelf.fetch("model:x")
    (fetched / "a.txt").unlink()
    (fetched / "extra").write_text("?")
    assert _files(shelf.fetch("model:x")) == _files(folder)


def test_fetchers_at_once_get_one_folder_that_nobody_takes_away_again(store: Store, folder: Path) -> None:
    for number in range(40):
        (folder / f"{number}.bin").write_bytes(bytes(100_000))
    store.publish("model", "x", folder)
    start = threading.Barrier(6)

    def fetch_and_look(_: int) -> set[int]:
        start.wait()
        fetched = store.fetch("model:x")
        return {fetched.stat().st_ino for _ in range(200)}

    with ThreadPoolExecutor(6) as pool:
        seen = set().union(*pool.map(fetch_and_look, range(6)))
    assert len(seen) == 1


def test_a_seal_that_a_power_cut_left_as_noise_only_means_that_the_files_are_verified_again(
    store: Store, folder: Path
) -> None:
    store.publish("model", "x", folder)
    fetched = store.fetch("model:x")
    fetched.with_name(f"{fetched.name}.json").write_bytes(b"\xff\x00\xfe")
    assert _files(store.fetch("model:x")) == _files(folder)


def test_a_folder_that_cannot_be_listed_is_not_left_out_of_what_is_published(folder: Path) -> None:
    (folder / "zz").mkdir()
    (folder / "zz" / "c.txt").write_text("c")
    walk = _walk(folder)
    next(walk)
    shutil.rmtree(folder / "zz")
    with pytest.raises(SpecError, match="zz: No such file"):
        list(walk)


def test_the_doctor_leaves_the_scratch_folder_of_a_living_process_however_old_it_is(store: Store) -> None:
    with store.scratch() as scratch:
        os.utime(scratch, (0, 0))
        assert store.doctor(repair=True) == ()
        assert scratch.is_dir()


def test_the_doctor_removes_contents_without_an_artifact_and_nothing_else(shelf: Store, folder: Path) -> None:
    artifact = shelf.publish("model", "x", folder)
    (folder / "a.txt").write_text("never published")
    digest, _, _ = shelf._blobs.put(folder / "a.txt")
    assert shelf.doctor() == (f"content {digest[:12]} belongs to no artifact",)
    assert shelf.doctor(repair=True) == (f"content {digest[:12]} belongs to no artifact, removed",)
    assert shelf.doctor() == ()
    assert _contents(shelf) == sorted(f.digest for f in artifact.files)


def test_two_databases_may_share_a_bucket(tmp_path: Path, folder: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    mine, theirs = (Settings(home=str(tmp_path / name), artifacts_url=url) for name in ("mine", "theirs"))
    with Store.open(mine) as one, Store.open(theirs) as two:
        one.publish("model", "x", folder)
        assert two.doctor(repair=True) == ()
        assert _files(one.fetch("model:x")) == _files(folder)


def test_an_unknown_kind_of_artifact_url_is_a_spec_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="carrier-pigeon"):
        Store.open(Settings(home=str(tmp_path), artifacts_url="carrier-pigeon://coop"))


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(Settings(home=str(tmp_path_factory.mktemp("home")))) as store:
        yield store


names = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8)


@hypothesis_settings(max_examples=40, deadline=None)
@given(tree=st.dictionaries(names, st.binary(max_size=64), min_size=1, max_size=4), number=st.integers(0, 2))
def test_any_folder_comes_back_whole_and_content_alone_decides_the_version(
    long_lived: Store, tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes], number: int
) -> None:
    source = tmp_path_factory.mktemp("tree")
    for name, data in tree.items():
        (source / name).write_bytes(data)
    versions: dict[str, Artifact] = {a.digest: a for a in long_lived.artifacts("dataset", "any")}
    artifact = long_lived.publish("dataset", "any", source, meta={"n": number})
    assert _files(long_lived.fetch(artifact)) == tree
    if artifact.digest in versions:
        assert artifact == versions[artifact.digest]
    else:
        assert artifact.version == len(versions) + 1


def test_what_must_be_as_reachable_as_artifacts_lies_beside_them(tmp_path: Path) -> None:
    home, bucket = tmp_path / "home", tmp_path / "bucket"
    with Store.open(Settings(home=str(home))) as store:
        assert store.place("runs/r") == f"{home}/runs/r"
    with Store.open(Settings(home=str(home), artifacts_url=f"file://{bucket}")) as store:
        place = Path(store.place("runs/r"))
        assert place.parts[-2:] == ("runs", "r")
        assert place.is_relative_to(bucket)
    with Store.open(Settings(home=str(home), artifacts_url=f"local://{bucket}/x/")) as store:
        assert store.place("runs/r").startswith(f"local://{bucket}/x/")


def test_a_store_says_what_of_this_disk_others_must_see(store: Store, folder: Path, tmp_path: Path) -> None:
    """With this machine's own ids in the paths: another's home may have the same name."""
    store.publish("model", "x", folder)
    needs = [Path(path) for path in store.needs("train-1")]
    assert all(path.exists() for path in needs)
    embedded = store.settings.database_url == ""
    assert [path.name == "train-1" for path in needs] == ([True, False] if embedded else [False])
    settings = replace(store.settings, artifacts_url=f"local://{tmp_path}/bucket")
    with Store.open(settings) as remote:
        assert [Path(path).name for path in remote.needs("train-1")] == (["train-1"] if embedded else [])


@pytest.fixture
def bucket(tmp_path: Path) -> Settings:
    """Contents behind a URL, and no room at all for copies that nobody uses."""
    url = f"memory://{uuid.uuid4().hex}/bucket"
    return Settings(home=str(tmp_path / "small"), artifacts_url=url, fetched_gb=0)


def test_copies_beyond_the_limit_go_when_nobody_holds_them(bucket: Settings, folder: Path) -> None:
    with Store.open(bucket) as writer:
        writer.publish("model", "old", folder)
        (folder / "a.txt").write_text("another")
        writer.publish("model", "new", folder)
        first = writer.fetch("model:old")
    with Store.open(bucket) as reader, Store.open(bucket) as other:
        held = reader.fetch("model:new")
        assert not first.exists(), "its store was closed"
        other.fetch("model:old")
        other.doctor(repair=True)
        assert (held / "a.txt").read_text() == "another", "another store of another process may be reading it"
        reader.close()
        (found,) = other.doctor(repair=True)
        assert held.name[:12] in found
        assert not held.exists()
        assert (other.fetch("model:new") / "a.txt").read_text() == "another", "fetched again"


def test_copies_go_longest_unused_first_and_only_as_many_as_must(bucket: Settings, tmp_path: Path) -> None:
    with Store.open(replace(bucket, fetched_gb=1)) as store:
        folders = []
        for name in ("one", "two", "three"):
            (tmp_path / name).write_text(name * 1000)
            folders.append(store.fetch(store.publish("model", name, tmp_path / name)))
        os.utime(folders[0].with_name(f"{folders[0].name}.use"), (1, 1))
        os.utime(folders[1].with_name(f"{folders[1].name}.use"), (2, 2))
    kept = Fetched(folders[0].parent, limit_bytes=9000)
    (tmp_path / "scratch").mkdir()
    assert [digest for digest, _ in kept.prune(tmp_path / "scratch")] == [folders[0].name]
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_links_to_a_local_store_take_no_room_and_stay(tmp_path: Path, folder: Path) -> None:
    with Store.open(Settings(home=str(tmp_path / "home"), fetched_gb=0)) as store:
        store.publish("model", "x", folder)
        fetched = store.fetch("model:x")
    with Store.open(Settings(home=str(tmp_path / "home"), fetched_gb=0)) as store:
        assert store.doctor(repair=True) == ()
        assert fetched.exists()


def test_removing_what_another_process_has_just_removed_is_no_error(tmp_path: Path) -> None:
    root, scratch = tmp_path / "fetched", tmp_path / "scratch"
    scratch.mkdir()
    for name in ("one", "two", "three"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text("x" * 100)
    pruning, quicker = (Fetched(root, limit_bytes=0).prune(scratch) for _ in range(2))
    removed = [next(pruning)[0], *(name for name, _ in quicker)]
    assert sorted(removed) == ["one", "three", "two"]
    assert list(pruning) == []
