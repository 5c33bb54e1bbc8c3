"""Lets rank processes of the test gangs find `training_gang` by name: they inherit this path."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.testing.gangs import Pool

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Processes that all tests of a file run their gangs in."""
    made = Pool()
    yield made
    made.close()
