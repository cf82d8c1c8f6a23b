"""`hidream audit`: what was done to keys, when and by whom."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import click

from hidream.commands import values
from hidream.commands.grammar import Command, Flag, Given
from hidream.commands.in_store import in_store
from hidream.commands.printing import json_line
from hidream.commands.values import Value
from hidream.settings.tables import Settings


def _audit(given: Given, config: Settings) -> int:
    from hidream.store import audit_log

    since_ms = 0 if given.since is None else round((time.time() - given.since) * 1000)
    for entry in in_store(config, lambda database: audit_log.entries(database, since_ms)):
        at = datetime.fromtimestamp(entry.at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if given.json:
            fields = {"at": at, "actor": entry.actor, "act": entry.act, "subject": entry.subject}
            json_line({**fields, "details": entry.details})
            continue
        details = " ".join(f"{name}={json.dumps(value)}" for name, value in entry.details.items())
        click.echo(f"{at}  {entry.actor}  {entry.act}  {entry.subject}  {details}".rstrip())
    return 0


AUDIT = Command(
    _audit,
    [
        Flag(
            ["--since"],
            type=Value(values.ago, "ago"),
            metavar="AGO",
            help="such as 12h, 7d or 4w (default: all, which is a year)",
        )
    ],
    details="With --json, one JSON object per line.",
    extras="server",
    examples=["hidream audit --since 7d", "hidream audit --json | jq -r .act"],
)
