from concurrent.futures import ThreadPoolExecutor

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from service.database import migrate
from service.database.engine import open_engine, session_factory, write_connection
from service.database.tables import Base, Dataset, Deployment, Import, Item, Label, Model
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


def test_rows_from_before_are_counted_and_paired_and_hold_ordinary_pictures(
    settings: Settings,
) -> None:
    engine = open_engine(settings)
    config = migrate._config()
    with write_connection(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        rows = (
            "datasets (id, name, task, created_at) VALUES ('ds_1', 'rings', 'x', '2025-01-01')",
            "datasets (id, name, task, created_at) VALUES ('ds_2', 'empty', 'x', '2025-01-01')",
            _OLD_IMPORT,
            *(_old_item(key) for key in ("a", "b")),
            *(_old_label(key, classes) for key, classes in (("b", 1), ("c", 0))),
        )
        for row in rows:
            connection.execute(text(f"INSERT INTO {row}"))
    migrate.upgrade(engine)
    with session_factory(engine, writes=False)() as session:
        rings, empty = session.get_one(Dataset, "ds_1"), session.get_one(Dataset, "ds_2")
        assert (rings.item_count, rings.labelled_count, rings.label_count) == (2, 1, 2)
        assert rings.class_counts == {"pit": 1}
        assert rings.bayer is None
        assert (empty.item_count, empty.label_count, empty.class_counts) == (0, 0, {})
        assert [session.get_one(Item, key).labelled for key in "ab"] == [False, True]
        assert [session.get_one(Label, key).waiting for key in "bc"] == [False, True]
        imported = session.get_one(Import, "imp_1")
        assert (imported.archive_sha256, imported.unverified_bytes) == ("abc", None)
    engine.dispose()


def test_deployments_from_before_keep_their_model_and_their_way_back(settings: Settings) -> None:
    engine = open_engine(settings)
    config = migrate._config()
    rows = (
        "datasets (id, name, task, created_at) VALUES ('ds_1', 'rings', 'x', '2025-01-01')",
        (
            "versions (id, dataset_id, digest, classes, split, statistics, warnings, created_at) "
            "VALUES ('ver_1', 'ds_1', 'd', '[]', '{}', '{}', '[]', '2025-01-01')"
        ),
        *(
            row
            for name in "ab"
            for row in (
                (
                    "jobs (id, version_id, status, spec, progress, metrics, warnings, "
                    "cancel_requested, attempts, fruitless_attempts, created_at) VALUES "
                    f"('job_{name}', 'ver_1', 'succeeded', '{{}}', '{{}}', '{{}}', '[]', 0, 1, 0, "
                    "'2025-01-01')"
                ),
                (
                    "models (id, job_id, version_id, report, created_at) VALUES "
                    f"('mdl_{name}', 'job_{name}', 'ver_1', '{{}}', '2025-01-01')"
                ),
            )
        ),
        (
            "deployments (name, model_id, previous_model_id, updated_at) "
            "VALUES ('line-1', 'mdl_b', 'mdl_a', '2025-02-03'), "
            "('line-2', 'mdl_a', NULL, '2025-02-03')"
        ),
    )
    with write_connection(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        for row in rows:
            connection.exec_driver_sql(f"INSERT INTO {row}")
    migrate.upgrade(engine)
    with session_factory(engine).begin() as session:
        first, second = (session.get_one(Deployment, name) for name in ("line-1", "line-2"))
        assert (first.model_id, first.trail) == ("mdl_b", [{"model": "mdl_a"}])
        assert (second.model_id, second.trail) == ("mdl_a", [])
        assert first.promotion_constraint is None
        assert first.gate == {"outcome": "no_constraint"}
        assert first.updated_at.isoformat() == "2025-02-03T00:00:00+00:00"
        # A job's weights may be served at several thresholds.
        session.add(Model(id="mdl_c", job_id="job_a", version_id="ver_1", report={}))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    engine.dispose()


_OLD_IMPORT = (
    "imports (id, dataset_id, status, archive_sha256, done, outcomes, created_at) "
    "VALUES ('imp_1', 'ds_1', 'succeeded', 'abc', 2, '[]', '2025-01-01')"
)


def _old_item(key: str) -> str:
    columns = "id, dataset_id, name, key, sha256, byte_count, width, height, channels, bit_depth"
    values = f"'{key}', 'ds_1', '{key}.png', '{key}', '{key}', 1, 96, 64, 1, 8"
    return f"items ({columns}, notes, created_at) VALUES ({values}, '[]', '2025-01-01')"


def _old_label(key: str, pits: int) -> str:
    columns = "id, dataset_id, name, key, kind, sha256, width, height, classes, content, created_at"
    values = f"'{key}', 'ds_1', '{key}.json', '{key}', 'labelme', '{key}', 96, 64"
    # A colon would begin a parameter.
    classes = f'{{"pit"\\: {pits}}}'
    return f"labels ({columns}) VALUES ({values}, '{classes}', '', '2025-01-01')"
