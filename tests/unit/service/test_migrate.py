from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from service.database import migrate
from service.database.engine import open_engine
from service.database.tables import Base
from service.settings import Settings


def test_the_migrated_schema_is_exactly_the_metadata(settings: Settings) -> None:
    engine = open_engine(settings)
    migrate.upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert set(inspect(connection).get_table_names()) == {
            *Base.metadata.tables,
            "alembic_version",
        }
    engine.dispose()


def test_a_database_is_current_only_after_its_upgrade(settings: Settings) -> None:
    engine = open_engine(settings)
    assert not migrate.is_current(engine)
    migrate.upgrade(engine)
    assert migrate.is_current(engine)
    engine.dispose()


def test_two_processes_may_upgrade_a_new_database_at_once(settings: Settings) -> None:
    engines = [open_engine(settings) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate.upgrade, engines))
    assert all(migrate.is_current(engine) for engine in engines)
    for engine in engines:
        engine.dispose()
