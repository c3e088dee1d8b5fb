"""Alembic's entry: runs the revisions on the connection ``service.database.migrate`` passes."""

from alembic import context

from service.database.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite alters a table by copying it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
