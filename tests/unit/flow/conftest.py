"""Flow tests keep their store on this test's own disk and count executions by files."""

from pathlib import Path

import pytest


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A folder in which steps leave one line per execution."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder
