"""Alembic's entry: runs the scripts on the connection that `mainspring.store.migrate` hands over."""

from alembic import context

from mainspring.store.database import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
