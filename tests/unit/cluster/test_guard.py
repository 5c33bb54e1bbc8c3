"""The guard: what was named and not taken back is gone when the owner is."""

import subprocess
from pathlib import Path

from mainspring.cluster.guard import holders, open_guard, survivors
from mainspring.testing.processes import eventually


def test_groups_taken_back_are_left_alone():
    assert survivors(["+10\n", "+11\n", "-10\n", "/a b\n", "+12\n", ".\n", "+13\n"]) == ({11, 12}, {Path("/a b")})


def test_whoever_holds_a_file_in_the_folder_is_killed_and_the_folder_removed(tmp_path):
    folder = tmp_path / "session"
    folder.mkdir()
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(["sleep", "60"], stdout=log) as holder,
        subprocess.Popen(["sleep", "60"]) as bystander,
        open_guard() as guard,
    ):
        try:
            assert holder.pid in holders(folder)
            guard.communicate(f"{folder}\n")  # this test is the owner: it holds `log` too, and is spared
            assert not folder.exists()
            assert eventually(lambda: holder.poll() == -9, within_s=5)
            assert bystander.poll() is None
        finally:
            holder.kill()
            bystander.kill()
