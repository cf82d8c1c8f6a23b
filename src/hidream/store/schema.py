"""The tables, in types that SQLite and PostgreSQL both have.

Times are whole milliseconds since the epoch. The newest migration in `migrations/versions` creates the same schema; a
test compares them.

Names in the database never change. Where the code uses another word, it is declared here and nowhere else:

| in the database | in Python | what it is |
|---|---|---|
| column `predictions.turn` | `virtual_start` | the task's virtual start time (fair queueing, `admission.py`) |
| table `turns` | `VIRTUAL_STARTS` | the virtual start time of each key's next task |
| table `repeats` | `IDEMPOTENCY_RECORDS` | which task an Idempotency-Key created |
| table `acts` | `AUDIT_LOG` | the audit log |
| column `previews.picture` | `image` | the preview's JPEG file |
"""

from __future__ import annotations

import sqlalchemy as sa

MINUTE_MS, DAY_MS = 60_000, 86_400_000

METADATA = sa.MetaData()

KEYS = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_ms", sa.BigInteger),
    sa.Column("scopes", sa.String(64), nullable=False, server_default="submit,read"),
    sa.Column("requests_per_minute", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("tasks_max", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("pixels_per_day", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("webhook_secret", sa.String(80), nullable=False, server_default=""),
    sa.Column("pepper_check", sa.String(64)),
    sa.Column("steps_max", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("pixels_max", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("images_max", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("work_per_day", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("bytes_max", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("webhook_secret_before", sa.String(80), nullable=False, server_default=""),
    sa.Column("webhook_secret_until_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
)
"""A limit of 0 means no limit. `pepper_check` tells peppers apart; rows of releases without it have NULL.

Until `webhook_secret_until_ms` webhooks are signed with `webhook_secret_before` as well as with `webhook_secret`.
"""

_NO_FILES = sa.text("status = 'deleted' AND output_name = ''")
_WITH_FILES = sa.text("status = 'deleted' AND output_name <> ''")

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
    sa.Column("has_nsfw", sa.Boolean),  # any of nsfw: for API processes of revisions before 0003, still running
    sa.Column("nsfw", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("inference_ms", sa.BigInteger, nullable=False),
    sa.Column("warnings", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("workers_lost", sa.Integer, nullable=False),
    sa.Column("worker_id", sa.String(128)),
    sa.Column("lease_until_ms", sa.BigInteger),
    sa.Column("pixels", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("work", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("turn", sa.BigInteger, key="virtual_start", nullable=False, server_default="0"),
    sa.Column("base_url", sa.String(1024), nullable=False, server_default=""),
    sa.Column("webhook", sa.String(2048), nullable=False, server_default=""),
    sa.Column("step", sa.Integer, nullable=False, server_default="0"),
    sa.Column("steps", sa.Integer, nullable=False, server_default="0"),
    sa.Column("watched_until_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("output_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Index("predictions_waiting", "status", "virtual_start", "created_ms", "id", "key_id", "model", "work"),
    sa.Index("predictions_done", "status", "finished_ms"),
    sa.Index("predictions_of_key", "key_id", "created_ms", "id", "status", "model", "pixels", "work", "output_bytes"),
    sa.Index("predictions_age", "created_ms"),
    sa.Index("predictions_with_files", "status", "created_ms", sqlite_where=_WITH_FILES, postgresql_where=_WITH_FILES),
    sa.Index("predictions_no_files", "status", "created_ms", sqlite_where=_NO_FILES, postgresql_where=_NO_FILES),
)
"""`work` is the cost of a task in pixel steps; the queue is sorted by the virtual start time, which contains the head
start of the task's `priority` (`admission.py`).

The first and the third index cover more columns than they sort by, so that counting does not read the rows. The last
two are partial: they contain deleted predictions only.
"""

VIRTUAL_STARTS = sa.Table(
    "turns",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("next", sa.BigInteger, nullable=False),
)
"""The earliest virtual start time of each key's next task. The row with the empty id is the system's virtual time."""

PREVIEWS = sa.Table(
    "previews",
    METADATA,
    sa.Column("prediction_id", sa.String(32), sa.ForeignKey("predictions.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("picture", sa.LargeBinary, key="image", nullable=False),
)
"""The latest preview of a task that a client watches: the bytes of a JPEG file."""

IDEMPOTENCY_RECORDS = sa.Table(
    "repeats",
    METADATA,
    sa.Column("key_id", sa.String(32), sa.ForeignKey("keys.id"), primary_key=True),
    sa.Column("idempotency_key", sa.String(256), primary_key=True),
    sa.Column("body_hash", sa.String(64), nullable=False),
    sa.Column("prediction_id", sa.String(32), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Index("repeats_age", "created_ms"),
)
"""Which task a request with an Idempotency-Key created, and a digest of that request."""

DELIVERIES = sa.Table(
    "deliveries",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("prediction_id", sa.String(32), sa.ForeignKey("predictions.id", ondelete="CASCADE"), nullable=False),
    sa.Column("url", sa.String(2048), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("due_ms", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("key_id", sa.String(32), nullable=False, server_default=""),
    sa.Index("deliveries_due", "state", "due_ms"),
    sa.Index("deliveries_in_turns", "state", "key_id", "due_ms"),
    sa.Index("deliveries_of_prediction", "prediction_id", "created_ms"),
)
"""The outbox of webhooks: state waiting, delivered or given_up. A claimed delivery has a `due_ms` in the future."""

UPLOADS = sa.Table(
    "uploads",
    METADATA,
    sa.Column("name", sa.String(80), primary_key=True),
    sa.Column("key_id", sa.String(32), sa.ForeignKey("keys.id"), nullable=False),
    sa.Column("filename", sa.String(256), nullable=False),
    sa.Column("media_type", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("stored", sa.Boolean, nullable=False),
    sa.Column("used_ms", sa.BigInteger),
    sa.Index("uploads_age", "created_ms"),
    sa.Index("uploads_of_key", "key_id", "created_ms", "size"),
)
"""Files that clients sent. `stored` is false until the bytes are there, `used_ms` NULL until a task uses the file."""

WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("models", sa.JSON, nullable=False),
    sa.Column("version", sa.String(256), nullable=False),
    sa.Column("seen_ms", sa.BigInteger, nullable=False),
)

AUDIT_LOG = sa.Table(
    "acts",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("act", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(128), nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Index("acts_age", "at_ms"),
)
"""What administrators and keys did: actor, act, the key it concerns, and details. No secrets and no prompts."""
