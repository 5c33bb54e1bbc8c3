"""Small tasks in blocks: all of them, once each, however executors behave."""

import json
import threading
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.cluster.blocks import Blocks, finish, take
from mainspring.cluster.tasks import read_items, work
from mainspring.spec import SpecError, Task


@given(st.integers(0, 100_000))
def test_every_task_is_counted_once_whoever_is_slow_or_lost(seed: int):
    draw = Random(seed)
    total, holders = draw.randint(1, 400), draw.randint(1, 6)
    blocks = Blocks(total=total, holders=holders, aim_ms=draw.choice((1, 50, 5000)), patience_ms=100)
    counted: Counter[int] = Counter()
    held: dict[int, tuple[int, int]] = {}
    now_ms = 0
    for _ in range(40 * total + 400):
        if blocks.over:
            break
        now_ms += draw.randint(0, 60)
        holder = draw.randrange(holders)
        if holder in held:
            first, count = held[holder]
            if draw.random() < 0.7:
                del held[holder]
                if finish(blocks, first, holder, now_ms=now_ms):
                    counted.update(range(first, first + count))
        elif lease := take(blocks, holder, now_ms=now_ms):
            held[holder] = (lease.first, lease.count)
    assert blocks.over
    assert counted == Counter(range(total))


def test_a_block_grows_to_what_is_done_in_the_time_aimed_at_and_shrinks_at_the_end():
    blocks, now_ms, sizes = Blocks(total=10_000, holders=1, aim_ms=1000), 0, []
    while lease := take(blocks, 0, now_ms=now_ms):
        now_ms += lease.count
        assert finish(blocks, lease.first, 0, now_ms=now_ms)
        sizes.append(lease.count)
    assert sizes[:5] == [1, 4, 16, 64, 256]
    assert max(sizes) == 1000
    assert sizes[-1] == 1


def test_a_block_that_is_late_is_somebody_elses_and_its_answers_are_refused():
    blocks = Blocks(total=1, holders=2, patience_ms=100)
    assert take(blocks, 0, now_ms=0)
    assert take(blocks, 1, now_ms=99) is None
    assert take(blocks, 1, now_ms=100)
    assert not finish(blocks, 0, 0, now_ms=101)
    assert finish(blocks, 0, 1, now_ms=102)
    assert blocks.over


def square(item: int) -> int:
    return item * item


def test_ranks_do_all_items_between_them(tmp_path: Path, free_tcp_port: int):
    port, items = free_tcp_port, list(range(500))
    payload = {"entry": f"{__name__}:square", "items": items, "blocks": {"aim_ms": 5}}
    threads = []
    for rank in range(3):
        folder = tmp_path / str(rank)
        folder.mkdir()
        task = Task(
            job_id="squares",
            rank=rank,
            world=3,
            local_rank=rank,
            local_world=3,
            run_dir=str(folder),
            master=f"127.0.0.1:{port}",
        )
        threads.append(threading.Thread(target=work, args=(task, payload)))
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join(30)
    lines = [json.loads(line) for file in tmp_path.rglob("answers-*.jsonl") for line in file.read_text().splitlines()]
    assert sorted(each["item"] for each in lines) == items
    assert all(each["answer"] == each["item"] ** 2 for each in lines)


def test_a_file_that_is_no_json_lines_is_refused_with_its_line(tmp_path: Path):
    file = tmp_path / "items.jsonl"
    file.write_text('1\n\n{"a": 2}\n')
    assert read_items(file) == [1, {"a": 2}]
    file.write_text("1\nno\n")
    with pytest.raises(SpecError, match="line 2"):
        read_items(file)
    file.write_text("\n")
    with pytest.raises(SpecError, match="no items"):
        read_items(file)
    with pytest.raises(SpecError, match="cannot read"):
        read_items(tmp_path / "none")
