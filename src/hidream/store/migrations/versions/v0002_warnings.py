"""What the user of an image should know, beside the image.

The default stands in the table because a server of the release before, which may still run, names no such column.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Give predictions their warnings; those that exist have none."""
    op.add_column("predictions", sa.Column("warnings", sa.JSON, nullable=False, server_default="[]"))
