"""Bringing a database to the current schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from service.database.engine import write_connection

MIGRATIONS_DIR = Path(__file__).parent / "migrations"


def upgrade(engine: Engine) -> None:
    """Run every revision the database does not have yet, all of them or none.

    Safe to call from several processes at once: the whole upgrade is one writing transaction, so
    the second caller waits for the first and then finds nothing to do.
    """
    config = _config()
    with write_connection(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def is_current(engine: Engine) -> bool:
    """Return whether the database has exactly the newest revision."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head


def _config() -> Config:
    config = Config()
    # A percent sign in the path would be read as interpolation.
    config.set_main_option("script_location", str(MIGRATIONS_DIR).replace("%", "%%"))
    return config
