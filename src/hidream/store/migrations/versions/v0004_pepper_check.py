"""By which pepper a key was made, so that another one is noticed before clients are refused.

For existing keys it is unknown: the column stays empty until such a key is used.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Give keys their check value."""
    op.add_column("keys", sa.Column("pepper_check", sa.String(64)))
