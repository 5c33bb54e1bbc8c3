"""Two writers at once, kill -9 in the middle, and a full disk: no half-artifact, no lost record, no stuck lock."""

import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.spec import Settings, Unavailable
from mainspring.store import Store

PUBLISHER = Path(__file__).with_name("publisher.py")


def _start(settings: Settings, mode: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, str(PUBLISHER), settings.home, settings.database_url, mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def _go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def _assert_whole(store: Store) -> None:
    for artifact in store.artifacts(limit=10_000):
        fetched = store.fetch(artifact)
        assert sorted(p.stat().st_size for p in fetched.iterdir()) == sorted(f.size_bytes for f in artifact.files)
    store.doctor(repair=True)
    assert store.doctor() == ()


def test_processes_publishing_one_name_at_once_lose_and_duplicate_no_version(settings: Settings) -> None:
    children = [_start(settings, f"count:15:{tag}") for tag in ("a", "b")]
    for child in children:
        _go(child)
    said = [child.communicate(timeout=60)[0].split("\n")[:-1] for child in children]
    published = [line.split() for lines in said for line in lines]
    with Store.open(settings) as store:
        versions = {artifact.ref: artifact.digest for artifact in store.artifacts("model", "shared")}
        assert versions == dict(published)
        assert sorted(int(ref.partition("@")[2]) for ref in versions) == list(range(1, 31))
        assert len(store.events(kind="artifact.published")) == 30
        _assert_whole(store)


def test_processes_publishing_the_same_content_at_once_agree_on_one_version(settings: Settings) -> None:
    children = [_start(settings, "count:5:same") for _ in range(2)]
    for child in children:
        _go(child)
    said = [child.communicate(timeout=60)[0] for child in children]
    assert sorted(said[0].split("\n")) == sorted(said[1].split("\n"))
    with Store.open(settings) as store:
        assert len(store.artifacts("model", "shared")) == 5
        _assert_whole(store)


@pytest.mark.slow
def test_kill_nine_at_any_moment_of_a_publish_leaves_only_whole_artifacts_and_no_lock(settings: Settings) -> None:
    chance = random.Random(7)
    told: dict[str, str] = {}
    for turn in range(8):
        child = _start(settings, "forever")
        _go(child)
        assert child.stdout is not None
        said = child.stdout.readline() if turn % 2 else ""  # on a busy machine no publish may be done by then
        threading.Event().wait(chance.uniform(0.0, 0.25))
        child.kill()
        said += child.communicate()[0]
        told |= dict(line.split() for line in said.splitlines() if line.count(" ") == 1)
    with Store.open(settings) as store:
        known = {artifact.ref: artifact.digest for artifact in store.artifacts(limit=10_000)}
        assert told
        assert told.items() <= known.items()
        assert sorted(int(ref.partition("@")[2]) for ref in known) == list(range(1, len(known) + 1))
        _assert_whole(store)
        store.emit("the lock is free", "x", {})
    assert not any((settings.home_path / "scratch").glob("*"))
    assert not any(settings.home_path.glob("artifacts/*/partial/*"))


def test_a_file_beyond_the_limit_of_the_disk_is_unavailable_and_leaves_nothing(settings: Settings) -> None:
    child = _start(settings, "big")
    said, _ = child.communicate("\n", timeout=60)
    assert said.startswith("Unavailable cannot store")
    assert "free some disk space" in said
    with Store.open(settings) as store:
        assert (store.artifacts(), store.doctor()) == ((), ())
    assert [p for p in settings.home_path.rglob("*") if p.is_file() and p.stat().st_size > 3 << 20] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MiB, mounted when the machine allows it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as sink:
        while True:
            sink.write(bytes(4096))


def _emit_without_end(store: Store) -> None:
    for index in itertools.count():
        store.emit("fill", str(index), {"text": "x" * 4000})


def test_a_disk_that_fills_up_under_database_and_contents_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    filler, source = small_disk / "filler", tmp_path / "source"
    with Store.open(Settings(home=str(small_disk / "home"))) as store:
        source.write_text("before")
        before = store.publish("model", "x", source)
        source.write_bytes(os.urandom(4 << 20))
        with pytest.raises(Unavailable, match="cannot store") as caught:
            store.publish("model", "x", source)
        assert "free some disk space" in caught.value.hint
        assert (store.artifacts(), store.doctor()) == ((before,), ())

        with pytest.raises(OSError, match="No space"):
            _fill(filler)
        with pytest.raises(Unavailable) as caught:  # now not even a row fits
            _emit_without_end(store)
        assert "disk" in caught.value.hint
        events = store.events()

        filler.unlink()
        source.write_text("after")
        assert store.publish("model", "x", source).version == 2
        assert store.events()[: len(events)] == events
        assert [event.subject for event in store.events(kind="fill")] == [str(i) for i in range(len(events) - 1)]
        _assert_whole(store)
