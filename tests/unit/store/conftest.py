"""The store's tests run on SQLite and on a PostgreSQL that this session starts itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.spec import Settings
from mainspring.store import Store
from mainspring.testing.postgres import NoPostgres, empty_database, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Path]:
    try:
        with running_postgres() as socket_folder:
            yield socket_folder
    except NoPostgres as reason:
        pytest.skip(f"no PostgreSQL: {reason}")


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    home = str(tmp_path / "home")
    if request.param == "sqlite":
        return Settings(home=home)
    folder = request.getfixturevalue("postgres")
    return Settings(home=home, database_url=empty_database(folder))


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with Store.open(settings) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder with two files, one of them nested."""
    made = tmp_path / "source"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("alpha")
    (made / "sub" / "b.bin").write_bytes(bytes(range(256)))
    return made
