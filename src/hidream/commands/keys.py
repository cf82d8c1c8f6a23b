"""`hidream keys`: create, list, limit, revoke, rotate, export and erase API keys."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from hidream.commands import values
from hidream.commands.grammar import Command, Entry, Flag, Given, Group
from hidream.commands.in_store import actor, in_store
from hidream.commands.printing import result
from hidream.commands.values import PATH, TEXT, Value
from hidream.errors import InvalidInput
from hidream.settings.tables import Settings
from hidream.types import PRIORITY_MAX

if TYPE_CHECKING:
    from hidream.store.keys import Key

SCOPES = ("submit", "view", "read", "admin")
"""The scopes of a key, as in `store/keys.Scope`, which the grammar does not import; a test compares the two."""
LIMITS = {
    "requests_per_minute": "submissions a minute",
    "tasks_max": "unfinished tasks at a time",
    "pixels_per_day": "pixels in 24 hours",
    "steps_max": "steps of a task",
    "pixels_max": "pixels of an image",
    "images_max": "images of a task",
    "work_per_day": "pixel steps in 24 hours",
    "bytes_max": "bytes of stored uploads and images",
}
"""The limits of a key, as in `store/keys.Limits`, which the grammar does not import; a test compares the two."""


def _create(given: Given, config: Settings) -> int:
    from hidream.store import keys

    limits = keys.Limits(**_limits_given(given))
    scopes = frozenset(map(keys.Scope, given.scopes))
    options = {"pepper": config.store.key_pepper, "actor": actor()}
    key, secret = in_store(
        config, lambda database: keys.create(database, given.name, scopes, limits, given.priority, **options), make=True
    )
    data = {"id": key.id, "key": secret, "name": key.name, "scopes": sorted(key.scopes), "priority": key.priority}
    result(given, data, f"{secret}\nshown once: only its hash is stored; the key's id is {key.id}")
    return 0


def _list(given: Given, config: Settings) -> int:
    from hidream.store import keys

    data, lines = [], []
    for key in in_store(config, keys.list_keys):
        revoked = f"revoked {_day(key.revoked_ms)}" if key.revoked_ms else "valid"
        scopes, limits = ",".join(sorted(key.scopes)), _limits(key)
        lines.append(f"{key.id}  created {_day(key.created_ms)}  {revoked:18}  {scopes:11}  {limits:9}  {key.name}")
        own = {"id": key.id, "name": key.name, "scopes": sorted(key.scopes), "limits": dataclasses.asdict(key.limits)}
        data.append(
            {**own, "priority": key.priority, "created": _instant(key.created_ms), "revoked": _instant(key.revoked_ms)}
        )
    result(given, data, lines)
    return 0


def _limits(key: Key) -> str:
    """Describe the limits of a key, and its priority."""
    found = {label: getattr(key.limits, name) for name, label in LIMITS.items()}
    described = [f"{limit} {label}" for label, limit in found.items() if limit] or ["no limits"]
    return ", ".join(described + [f"priority {key.priority}"] * bool(key.priority))


def _limits_given(given: Given) -> dict[str, int]:
    """The limits on the command line, by name."""
    limits = {name: getattr(given, name) for name in LIMITS}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _limit(given: Given, config: Settings) -> int:
    from hidream.store import keys

    changed = _limits_given(given)
    if not changed and given.priority is None:
        raise InvalidInput(
            "no limit is given; accepted: one or more of the flags that `hidream keys limit --help` lists"
        )
    options = {"priority": given.priority, "actor": actor()}
    in_store(config, lambda database: keys.set_limits(database, given.id, changed, **options))
    limits = [f"{limit or 'any number of'} {LIMITS[name]}" for name, limit in changed.items()]
    limits += [] if given.priority is None else [f"priority {given.priority}"]
    result(
        given,
        {"id": given.id, "changed": changed, "priority": given.priority},
        f"changed {given.id}: {', '.join(limits)}",
    )
    return 0


def _revoke(given: Given, config: Settings) -> int:
    from hidream.store import keys

    in_store(config, lambda database: keys.revoke(database, given.id, actor=actor()))
    result(given, {"id": given.id, "revoked": True}, f"revoked {given.id}")
    return 0


def _rotate(given: Given, config: Settings) -> int:
    from hidream.store import keys

    pepper = config.store.key_pepper
    secret = in_store(config, lambda database: keys.rotate(database, given.id, pepper=pepper, actor=actor()))
    text = f"{secret}\nshown once: only its hash is stored; the old secret of {given.id} is invalid"
    result(given, {"id": given.id, "key": secret}, text)
    return 0


def _rotate_webhook(given: Given, config: Settings) -> int:
    from hidream.store import webhook_secrets
    from hidream.webhooks.signature import new_secret

    if given.retire:
        ended = in_store(config, lambda database: webhook_secrets.retire(database, given.id, actor=actor()))
        text = "only the new secret signs from now on" if ended else f"no rotation of {given.id} is in progress"
        result(given, {"id": given.id, "retired": ended}, text)
        return 0
    overlap_ms = given.overlap * 3_600_000
    rotated = in_store(
        config, lambda database: webhook_secrets.rotate(database, given.id, new_secret(), overlap_ms, actor=actor())
    )
    if rotated.next:
        until = datetime.fromtimestamp(rotated.until_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        text = f"{rotated.next}\nsigns beside the old secret until {until}, and alone from then on"
        data = {"id": given.id, "secret": rotated.next, "until": _instant(rotated.until_ms)}
    else:
        text = f"{rotated.secret}\nalone signs the webhooks of {given.id} from now on"
        data = {"id": given.id, "secret": rotated.secret, "until": None}
    result(given, data, text)
    return 0


def _export(given: Given, config: Settings) -> int:
    from hidream.configured_stores import open_configured_store
    from hidream.outputs.object_store import Namespace
    from hidream.server.export import export

    outputs, uploads = (open_configured_store(config, each) for each in (Namespace.OUTPUTS, Namespace.UPLOADS))
    written = in_store(config, lambda database: export(database, outputs, uploads, given.id, given.out, actor()))
    found = ", ".join(f"{count} {table}" for table, count in sorted(written.items())) or "the key alone"
    result(given, {"id": given.id, "out": str(given.out), **written}, f"{given.out}: {found}")
    return 0


def _erase(given: Given, config: Settings) -> int:
    from hidream.configured_stores import open_configured_store
    from hidream.outputs.object_store import Namespace
    from hidream.server.erasure import erase

    if not given.yes:
        raise InvalidInput(
            f"all data of {given.id!r:.100} would be erased, which cannot be undone; accepted: with --yes"
        )
    outputs, uploads = (open_configured_store(config, each) for each in (Namespace.OUTPUTS, Namespace.UPLOADS))
    erased = in_store(config, lambda database: erase(database, outputs, uploads, given.id, actor()))
    text = f"revoked and erased {given.id}: {erased['predictions']} predictions, {erased['uploads']} uploads"
    result(given, {"id": given.id, **erased}, text)
    return 0


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


def _instant(ms: int | None) -> str | None:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds") if ms else None


def _id() -> click.Parameter:
    return click.Argument(["id"], type=TEXT)


def _limit_flags(default: int | None, note: str) -> list[click.Parameter]:
    read = Value(values.limit, "limit")
    about = f"how early its tasks go: {-PRIORITY_MAX} to {PRIORITY_MAX}, a higher one before a lower one (a new key: 0)"
    priority = Flag(["--priority"], type=Value(values.priority, "priority"), default=default, metavar="N", help=about)
    limits: list[click.Parameter] = [
        Flag([f"--{name.replace('_', '-')}"], type=read, default=default, metavar="N", help=f"{label} ({note})")
        for name, label in LIMITS.items()
    ]
    return [*limits, priority]


CREATE = Command(
    _create,
    [
        Flag(["--name"], type=TEXT, default="", help="a name for the list"),
        Flag(
            ["--scopes"],
            type=Value(values.some_of(SCOPES, "a list of scopes"), "scopes"),
            default=("submit", "read"),
            metavar="SCOPES",
            help=f"what it may do: some of {', '.join(SCOPES)}, separated by commas (default: submit,read)",
        ),
        *_limit_flags(0, "default: no limit"),
    ],
    extras="server",
    examples=["hidream keys create --name laptop", "hidream keys create --scopes read --requests-per-minute 60"],
)
LIST = Command(_list, extras="server", examples=["hidream keys list", "hidream keys list --json | jq -r '.[].id'"])
REVOKE = Command(_revoke, [_id()], extras="server", examples=["hidream keys revoke 0123456789abcdef0123456789abcdef"])
ROTATE = Command(_rotate, [_id()], extras="server", examples=["hidream keys rotate 0123456789abcdef0123456789abcdef"])
LIMIT = Command(
    _limit,
    [_id(), *_limit_flags(None, "0: no limit; default: unchanged")],
    extras="server",
    examples=["hidream keys limit 0123456789abcdef0123456789abcdef --tasks-max 10"],
)
ROTATE_WEBHOOK = Command(
    _rotate_webhook,
    [
        _id(),
        Flag(
            ["--overlap"],
            type=Value(values.hours, "hours"),
            default=24,
            metavar="HOURS",
            help="for how long the old secret signs too: 0 to 168 (default: 24)",
        ),
        Flag(["--retire"], is_flag=True, help="end a rotation instead: only the new secret signs"),
    ],
    extras="server",
    examples=["hidream keys rotate-webhook 0123456789abcdef0123456789abcdef --overlap 48"],
)
EXPORT = Command(
    _export,
    [_id(), Flag(["--out", "-o"], type=PATH, required=True, metavar="PATH", help="a new .zip file or folder")],
    extras="server",
    examples=["hidream keys export 0123456789abcdef0123456789abcdef --out data.zip"],
)
ERASE = Command(
    _erase,
    [_id(), Flag(["--yes", "-y"], is_flag=True, help="confirm: erasing cannot be undone")],
    extras="server",
    examples=["hidream keys erase 0123456789abcdef0123456789abcdef --yes"],
)

KEYS = Group(
    {
        "Commands": {
            "create": Entry(__name__, "CREATE", "create a key and print it, once"),
            "list": Entry(__name__, "LIST", "list all keys, including revoked ones"),
            "revoke": Entry(__name__, "REVOKE", "revoke a key; takes effect within a second"),
            "rotate": Entry(
                __name__, "ROTATE", "give a key a new secret and print it, once; the old one becomes invalid"
            ),
            "limit": Entry(__name__, "LIMIT", "change limits of a key; takes effect within a second"),
            "rotate-webhook": Entry(__name__, "ROTATE_WEBHOOK", "give a key's webhooks a new secret and print it"),
            "export": Entry(__name__, "EXPORT", "write all data of a key to a folder or a .zip file"),
            "erase": Entry(__name__, "ERASE", "revoke a key, and erase all its data"),
        }
    }
)
