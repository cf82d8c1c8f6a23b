"""The tables, in types that SQLite and PostgreSQL both have.

Times are whole milliseconds since the epoch. This is what the newest migration in `migrations/versions`
arrives at; a test holds the two together.
"""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

KEYS = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_ms", sa.BigInteger),
)

PREDICTIONS = sa.Table(
    "predictions",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("key_id", sa.String(32), sa.ForeignKey("keys.id"), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("input", sa.JSON, nullable=False),
    sa.Column("output_name", sa.String(80), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("code", sa.Integer, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("version", sa.String(256), nullable=False),
    sa.Column("has_nsfw", sa.Boolean),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("inference_ms", sa.BigInteger, nullable=False),
    sa.Column("warnings", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("workers_lost", sa.Integer, nullable=False),
    sa.Column("worker_id", sa.String(128)),
    sa.Column("lease_until_ms", sa.BigInteger),
    sa.Index("predictions_queue", "status", "created_ms"),
)

WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("models", sa.JSON, nullable=False),
    sa.Column("version", sa.String(256), nullable=False),
    sa.Column("seen_ms", sa.BigInteger, nullable=False),
)
