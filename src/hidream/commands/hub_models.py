"""What `hidream models` does (`models` has its grammar): the models of the Hub, and what of them is in its cache.

What is downloaded, and how, is decided in `hub/`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TextIO

from hidream.commands.grammar import Given
from hidream.commands.progress import bytes_bar
from hidream.errors import InvalidInput
from hidream.hub import cache, catalogue, inventory, locate, names, remote
from hidream.hub import pull as pulling
from hidream.hub.catalogue import LLAMA_ENTRY, entry_of, name_of
from hidream.hub.inventory import Row
from hidream.hub.names import ModelId
from hidream.hub.pull import Plan
from hidream.settings.tables import Models, Settings

KEYS = tuple(field.name for field in dataclasses.fields(Models) if field.name != "loras")
"""The keys of `[models]` that name models or parts of them."""


def pull(given: Given, config: Settings) -> int:
    """Show what would be downloaded, ask, and download it."""
    if given.include and len(given.names) > 1:
        raise InvalidInput("--include comes with several models; accepted: with one")
    models = [_with_revision(names.parse(text), given.revision) for text in given.names]
    plans = [pulling.plan(model, include=given.include) for model in dict.fromkeys(models)]
    for plan in plans:
        _show_plan(plan, to=sys.stderr if given.json else sys.stdout)
    missing = sum(plan.to_download for plan in plans)
    if not given.dry_run and missing:
        _check(plans)
        _confirm(given.yes, f"download {_gb(missing)}")
    folders = [None if given.dry_run else _pull(plan) for plan in plans]
    if given.json:
        print(json.dumps([_plan_data(plan, folder) for plan, folder in zip(plans, folders, strict=True)], indent=1))
        return 0
    for plan, folder in zip(plans, folders, strict=True):
        if folder is not None:
            print(f"{plan.listing.model}: complete, {folder}")
            _say_what_is_next(plan.listing.model)
    return 0


def list_(given: Given, config: Settings) -> int:
    """List the known models, and what of them is here."""
    rows = inventory.rows(_named(config))
    if given.json:
        print(json.dumps([_row_data(row) for row in rows], indent=1))
        return 0
    print(f"the Hub's cache is {cache.cache_folder()}")
    width = max(len(row.name) for row in rows)
    for row in rows:
        size = _gb(row.size_bytes) if row.size_bytes else ""
        used = f"  used by {', '.join(row.used_by)}" * bool(row.used_by)
        print(f"{row.name:{width}}  {row.state:10}  {size:>8}  {row.model}{used}")
        if row.note:
            print(f"{'':{width}}  {'':10}  {row.note}")
    return 0


def show(given: Given, config: Settings) -> int:
    """Show a model: its files with size and digest, its licence, and the command that uses it.

    What is in the cache is shown from there; of anything else the Hub is asked.
    """
    model = names.parse(given.name)
    row = inventory.row_of(model)
    files = _cached_files(row.folder) if row.folder else _listed_files(model)
    data = _row_data(row) | _about(model) | {"files": files}
    if given.json:
        print(json.dumps(data, indent=1))
        return 0
    for key in ("model", "title", "licence", "gated", "variant", "state", "commit", "folder", "command", "note"):
        if data.get(key) not in (None, ""):
            print(f"{key:8}  {data[key]}")
    for file in files:
        print(f"{file['size_bytes']:>14,}  {file['digest'] or '–':64}  {file['path']}")
    return 0


def verify(given: Given, config: Settings) -> int:
    """Compare the content of cached files with their digests; the exit status is 1 if one is wrong."""
    models = [names.parse(text) for text in given.names] or _in_the_cache(config)
    found, bad = [], 0
    for model in models:
        for checked in inventory.verify(model):
            word = {True: "ok", False: "WRONG", None: "unknown"}[checked.good]
            found.append({"model": str(model), "path": checked.path, "state": word.lower(), "digest": checked.found})
            if not given.json:
                print(f"{word:7}  {checked.size_bytes:>14,}  {model}  {checked.path}", flush=True)
            if checked.good is False:
                bad += 1
                if given.remove:
                    checked.blob.unlink()
    if given.json:
        print(json.dumps(found, indent=1))
    if bad and not given.remove:
        _say("`--remove` deletes the wrong files; then `hidream models pull` downloads them again")
    elif bad:
        _say(f"deleted {bad} wrong file{'s' * (bad > 1)}: `hidream models pull` downloads them again")
    return 1 if bad else 0


def remove(given: Given, config: Settings) -> int:
    """Delete models from the cache."""
    removals = [inventory.removal(names.parse(text)) for text in given.names]
    used = {found.repository: key for key, path in _named(config).items() if (found := names.as_id(path))}
    for removal in removals:
        key = used.get(removal.model.repository)
        note = f", which `[models] {key}` names" if key else ""
        print(f"{removal.folder}: {_gb(removal.size_bytes)}{note}", file=sys.stderr if given.json else sys.stdout)
    _confirm(given.yes, f"delete {_gb(sum(removal.size_bytes for removal in removals))}")
    for removal in removals:
        inventory.remove(removal)
    if given.json:
        print(json.dumps([{"model": str(each.model), "size_bytes": each.size_bytes} for each in removals], indent=1))
    return 0


def _with_revision(model: ModelId, revision: str | None) -> ModelId:
    if revision is None:
        return model
    if model.revision not in (names.MAIN, revision):
        raise InvalidInput(f"--revision is {revision!r:.100}, and {model} names another; accepted: one of the two")
    return ModelId(model.repository, names.revision(revision))


def _show_plan(plan: Plan, *, to: TextIO) -> None:
    listing = plan.listing
    licence = f", licence: {_licence(listing.model, listing.licence)}"
    gated = ", gated" * listing.gated
    print(f"{listing.model} at commit {listing.commit[:12]}{licence}{gated}", file=to)
    for each in plan.files:
        state = "in the cache" if each.cached else f"{_gb(each.arrived_bytes)} here" if each.arrived_bytes else ""
        print(f"  {_gb(each.file.size_bytes):>9}  {each.file.path}{f'  ({state})' * bool(state)}", file=to)
    print(
        f"  {_gb(plan.total_bytes)} in all, {_gb(plan.to_download)} to download; {_gb(plan.free_bytes)} are free at "
        f"{cache.cache_folder()}",
        file=to,
    )


def _check(plans: Sequence[Plan]) -> None:
    """Check each plan as if those before it had been downloaded."""
    taken = 0
    for plan in plans:
        pulling.check(dataclasses.replace(plan, free_bytes=plan.free_bytes - taken))
        taken += plan.to_download


def _pull(plan: Plan) -> Path:
    lock, arrived = Lock(), 0
    with bytes_bar() as show:

        def on_bytes(count: int) -> None:
            nonlocal arrived
            with lock:
                arrived += count
                show(name_of(plan.listing.model.repository), arrived, plan.to_download)

        try:
            return pulling.pull(plan, on_bytes)
        except KeyboardInterrupt:
            _say("interrupted; what has arrived stays, and the same command goes on there")
            raise


def _confirm(yes: bool, what: str) -> None:
    """Ask on a terminal. Raises InvalidInput elsewhere without `--yes`, as gh does, and if the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput(
            f"nobody can be asked whether to {what}: standard input is no terminal; accepted: with --yes"
        )
    print(f"{what[0].upper()}{what[1:]}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InvalidInput("nothing was done; accepted: y, or --yes")


def _say_what_is_next(model: ModelId) -> None:
    entry = entry_of(model.repository)
    if entry is None or entry.variant is None:
        return
    if locate.cached_llama() is None:
        print(f"It needs Llama, which its repository does not have: `hidream models pull {LLAMA_ENTRY.name}`")
    else:
        print(f"Now: {_command(model)}")


def _command(model: ModelId) -> str:
    """The command that uses a model."""
    entry = entry_of(model.repository)
    if entry is LLAMA_ENTRY:
        return f"--llama {model}; an official checkpoint finds it by itself"
    variant = f" --variant {entry.variant}" if entry and entry.variant and entry.name != "dev" else ""
    return f'hidream generate "a fox in the snow" --model {model}{variant}'


def _about(model: ModelId) -> dict[str, object]:
    entry = entry_of(model.repository)
    if entry is None:
        return {"command": _command(model)}
    return {
        "title": entry.title,
        "licence": entry.licence,
        "gated": "yes" if entry.repository == model.repository and entry.free_copy else "no",
        "variant": str(entry.variant or ""),
        "command": _command(model),
    }


def _licence(model: ModelId, stated: str) -> str:
    entry = entry_of(model.repository)
    return entry.licence if entry else stated or "not stated"


def _cached_files(folder: Path) -> list[dict[str, object]]:
    files = cache.files_of(folder).items()
    return [
        {"path": path, "size_bytes": file.stat().st_size, "digest": cache.blob_name(file), "cached": True}
        for path, file in files
    ]


def _listed_files(model: ModelId) -> list[dict[str, object]]:
    listing = remote.listing(model)
    wanted = set(catalogue.needed(file.path for file in listing.files)) or {file.path for file in listing.files}
    return [
        {"path": file.path, "size_bytes": file.size_bytes, "digest": file.digest, "cached": False}
        for file in listing.files
        if file.path in wanted
    ]


def _in_the_cache(config: Settings) -> list[ModelId]:
    rows = inventory.rows(_named(config))
    found = [found for row in rows if row.folder is not None and (found := names.as_id(row.model))]
    if not found:
        raise InvalidInput(f"the Hub's cache ({cache.cache_folder()}) has no model; accepted: after `models pull`")
    return found


def _named(config: Settings) -> dict[str, Path]:
    """What `[models]` names, by its key."""
    return {key: path for key in KEYS if (path := getattr(config.models, key)) is not None}


def _row_data(row: Row) -> dict[str, object]:
    return dataclasses.asdict(row) | {"folder": str(row.folder or "")}


def _plan_data(plan: Plan, folder: Path | None) -> dict[str, object]:
    files = [
        {
            "path": each.file.path,
            "size_bytes": each.file.size_bytes,
            "digest": each.file.digest,
            "cached": each.cached,
            "to_download": each.to_download,
        }
        for each in plan.files
    ]
    return {
        "model": plan.listing.model.repository,
        "revision": plan.listing.model.revision,
        "commit": plan.listing.commit,
        "licence": _licence(plan.listing.model, plan.listing.licence),
        "gated": plan.listing.gated,
        "total_bytes": plan.total_bytes,
        "to_download": plan.to_download,
        "free_bytes": plan.free_bytes,
        "folder": "" if folder is None else str(folder),
        "files": files,
    }


def _gb(size_bytes: int) -> str:
    """A size for people, in decimal units."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} B"


def _say(text: str) -> None:
    print(f"hidream: {text}", file=sys.stderr)
