"""Bring the schema up to date with the Alembic scripts that ship inside the package."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def configuration() -> Config:
    """Alembic's configuration, without an ini file: the scripts lie beside this module."""
    found = Config()
    scripts = str(Path(__file__).with_name("migrations"))
    found.set_main_option("script_location", scripts.replace("%", "%%"))
    found.set_main_option("path_separator", "os")
    return found


def upgrade(connection: Connection) -> None:
    """Run every migration that is missing, inside the caller's transaction."""
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def newest() -> str | None:
    """The revision that `upgrade` ends at."""
    return ScriptDirectory.from_config(configuration()).get_current_head()
