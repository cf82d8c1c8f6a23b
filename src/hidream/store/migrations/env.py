"""What Alembic runs: the steps, on the connection that `store/database.py` opened and locked."""

from __future__ import annotations

from alembic import context

from hidream.store.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
