"""The priority of a key, and that of each of its tasks, which is the key's when the task was accepted.

Keys and tasks that exist have priority 0, and so have those that processes of the older revisions write until they are
replaced.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column to keys and predictions."""
    for table in ("keys", "predictions"):
        op.add_column(table, sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
