"""What keeps one key from taking the others' share: finer limits, and whose bytes, deliveries and acts those are.

Uploads that there are count as used: a task that waits may need them. Processes of the older revisions write deliveries
and uploads without the new columns until they are replaced: such deliveries are one key's for as long, and such uploads
go after an hour unless a task uses them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Give keys, predictions, uploads and deliveries their new columns, and make the table of administrators' acts."""
    for name in ("steps_max", "pixels_max", "images_max", "work_per_day", "bytes_max"):
        op.add_column("keys", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("keys", sa.Column("webhook_secret_before", sa.String(80), nullable=False, server_default=""))
    op.add_column("keys", sa.Column("webhook_secret_until_ms", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("predictions", sa.Column("output_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.drop_index("predictions_of_key", "predictions")
    of_key = ["key_id", "created_ms", "id", "status", "model", "pixels", "work", "output_bytes"]
    op.create_index("predictions_of_key", "predictions", of_key)
    with_files = sa.text("status = 'deleted' AND output_name <> ''")
    no_files = sa.text("status = 'deleted' AND output_name = ''")
    for name, which in (("predictions_with_files", with_files), ("predictions_no_files", no_files)):
        op.create_index(name, "predictions", ["status", "created_ms"], sqlite_where=which, postgresql_where=which)
    op.add_column("uploads", sa.Column("used_ms", sa.BigInteger))
    op.execute(sa.text("UPDATE uploads SET used_ms = created_ms"))
    op.create_index("uploads_of_key", "uploads", ["key_id", "created_ms", "size"])
    op.add_column("deliveries", sa.Column("key_id", sa.String(32), nullable=False, server_default=""))
    owner = "SELECT predictions.key_id FROM predictions WHERE predictions.id = deliveries.prediction_id"
    op.execute(sa.text(f"UPDATE deliveries SET key_id = COALESCE(({owner}), '')"))  # noqa: S608 - no value in it
    op.create_index("deliveries_in_turns", "deliveries", ["state", "key_id", "due_ms"])
    op.create_table(
        "acts",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("act", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("acts_age", "acts", ["at_ms"])
