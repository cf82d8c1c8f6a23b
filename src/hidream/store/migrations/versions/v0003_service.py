"""What the whole service keeps: turns, previews, webhooks, idempotency, uploads, and what keys may do.

`has_nsfw` stays, though `nsfw` says more: processes of the older revisions read and write it until they are replaced.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Give predictions and keys their new columns, and make the new tables."""
    for column in (
        sa.Column("scopes", sa.String(64), nullable=False, server_default="submit,read"),
        sa.Column("requests_per_minute", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("tasks_max", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("pixels_per_day", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("webhook_secret", sa.String(80), nullable=False, server_default=""),
    ):
        op.add_column("keys", column)
    _upgrade_predictions()
    op.create_table(
        "turns",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("next", sa.BigInteger, nullable=False),
    )
    of_prediction = ("predictions.id",)
    op.create_table(
        "previews",
        sa.Column("prediction_id", sa.String(32), sa.ForeignKey(*of_prediction, ondelete="CASCADE"), primary_key=True),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("picture", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "repeats",
        sa.Column("key_id", sa.String(32), sa.ForeignKey("keys.id"), primary_key=True),
        sa.Column("idempotency_key", sa.String(256), primary_key=True),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column("prediction_id", sa.String(32), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("repeats_age", "repeats", ["created_ms"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("prediction_id", sa.String(32), sa.ForeignKey(*of_prediction, ondelete="CASCADE"), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("due_ms", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("status_code", sa.Integer),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("finished_ms", sa.BigInteger),
    )
    op.create_index("deliveries_due", "deliveries", ["state", "due_ms"])
    op.create_index("deliveries_of_prediction", "deliveries", ["prediction_id", "created_ms"])
    op.create_table(
        "uploads",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("key_id", sa.String(32), sa.ForeignKey("keys.id"), nullable=False),
        sa.Column("filename", sa.String(256), nullable=False),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("stored", sa.Boolean, nullable=False),
    )
    op.create_index("uploads_age", "uploads", ["created_ms"])


def _upgrade_predictions() -> None:
    for column in (
        sa.Column("nsfw", sa.JSON, nullable=False, server_default="[]"),
        sa.Column("pixels", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("work", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("turn", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("base_url", sa.String(1024), nullable=False, server_default=""),
        sa.Column("webhook", sa.String(2048), nullable=False, server_default=""),
        sa.Column("step", sa.Integer, nullable=False, server_default="0"),
        sa.Column("steps", sa.Integer, nullable=False, server_default="0"),
        sa.Column("watched_until_ms", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("predictions", column)
    predictions = sa.table(
        "predictions", sa.column("has_nsfw", sa.Boolean), sa.column("nsfw", sa.JSON), sa.column("status", sa.String)
    )
    for flagged in (True, False):
        known = sa.and_(predictions.c.status == "completed", predictions.c.has_nsfw == flagged)
        op.execute(sa.update(predictions).where(known).values(nsfw=[flagged]))
    op.drop_index("predictions_queue", "predictions")
    waiting = ["status", "turn", "created_ms", "id", "key_id", "model", "work"]
    op.create_index("predictions_waiting", "predictions", waiting)
    op.create_index("predictions_done", "predictions", ["status", "finished_ms"])
    of_key = ["key_id", "created_ms", "id", "status", "model", "pixels"]
    op.create_index("predictions_of_key", "predictions", of_key)
    op.create_index("predictions_age", "predictions", ["created_ms"])
