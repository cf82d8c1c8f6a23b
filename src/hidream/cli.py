"""The command line, from `hidream generate` to `hidream store copy`.

Each command reads flags (`arguments.py`) and settings, calls one function of one package, and prints the result. The
commands import the packages that they need, so that `hidream --help` responds at once.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hidream import __version__, arguments, logs
from hidream.errors import ConfigurationError, HiDreamError, InvalidInput
from hidream.missing import importing
from hidream.request import ImageRequest, random_seed
from hidream.settings import private, sources
from hidream.settings.tables import Settings
from hidream.types import DEFAULT_SIZE, FORMAT_NAMES, ImageFormat, Size, Step, Variant

if TYPE_CHECKING:
    from hidream.store.database import Database
    from hidream.store.keys import Key

logger = logging.getLogger(__name__)

T = TypeVar("T")

SUFFIXES = {f".{name}": image_format for name, image_format in FORMAT_NAMES.items()}

EXTRAS = {
    "generate": "torch",
    "info": "torch",
    "convert": "torch",
    "models": "torch",
    "serve": "torch,server",
    "worker": "torch,server",
    "api": "server",
    "keys": "server",
    "audit": "server",
    "store": "server",
    "mcp": "mcp",
}
"""The extras of `pyproject.toml` that a command needs."""

SERVICES = ("serve", "api", "worker")
"""Commands that a service manager keeps running."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    The exit status is 0; 1 after an error, which is printed in one line; 2, by SystemExit, if the command line is not
    understood; and 78 if a service cannot start because of its configuration, so that a restart would not help.
    """
    given = arguments.parse(argv)
    try:
        config = sources.load(os.environ, arguments.flags(given))
        logs.configure(config.server.log_format)
        _warn_about_ignored_variables()
        if given.command in ("serve", "api") or (given.command == "worker" and not given.with_parent):
            _keep_private(config)
        with importing(f"`hidream {given.command}`", EXTRAS[given.command.partition(" ")[0]]):
            return COMMANDS[given.command](given, config)
    except HiDreamError as error:
        hopeless = isinstance(error, ConfigurationError) and given.command in SERVICES
        return _fail(error.message, ConfigurationError.exit_status if hopeless else 1)
    except OSError as error:  # such as a full disk or a missing permission: the system's message is sufficient
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (RuntimeError, MemoryError) as error:
        from hidream.worker.failure import TOO_LARGE, out_of_memory

        if not out_of_memory(error):
            raise
        return _fail(TOO_LARGE)
    except KeyboardInterrupt:
        return 130


def _warn_about_ignored_variables() -> None:
    if names := sources.ignored_variables(os.environ):
        reason = "Kubernetes or Docker set them; `enableServiceLinks: false` in the pod's spec prevents that"
        logger.warning("environment_ignored names=%s reason=%s", ",".join(names), reason)


def _keep_private(config: Settings) -> None:
    private.make_home(config.home)
    for path, cure in private.exposed(config, os.environ):
        logger.warning("others_may_read path=%s cure=%s", path, cure)


def _fail(message: str, status: int = 1) -> int:
    print(f"hidream: {_in_one_line(message)}", file=sys.stderr)
    return status


def _in_one_line(message: str) -> str:
    return " ".join(message.split())


def _let_threads_sleep() -> None:
    """Make waiting OpenMP threads sleep instead of spin; call this before torch is imported.

    If other processes need the cores, spinning is ruinous: next to one busy process, an image of nano took 30 to 70 s
    on two cores instead of 1.0 s. With sleeping threads it took 1.3 s (1.2 s on an idle machine).
    OMP_WAIT_POLICY=active restores spinning.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _generate(given: argparse.Namespace, config: Settings) -> int:
    output_format, image = _format_of(given.out), _bytes(given.image)
    parameters = arguments.parameters_of(given) | {"image": image, "mask": _bytes(given.mask)}
    parameters |= {"size": _size_of(given.size, image), "seed": random_seed() if given.seed == -1 else given.seed}
    request = ImageRequest(**parameters, output_format=output_format)

    _let_threads_sleep()
    from hidream.worker.garbage import gc_frozen

    with gc_frozen():
        from tqdm import tqdm

        from hidream.model.pipeline import generate
        from hidream.outputs.encode import encode
        from hidream.worker.loading import load_configured

        model = load_configured(Variant(given.variant), config)
    with tqdm(unit="step", desc=f"seed {request.seed}") as bar:

        def on_step(step: Step[Any]) -> None:
            bar.total = step.of
            bar.update(step.done - bar.n)

        generated = generate(model, request, on_step)
    version = model.version_of(request.mode)
    given.out.write_bytes(encode(generated.pixels, output_format, seed=request.seed, version=version))
    t = generated.timings
    for warning in generated.warnings:
        print(f"hidream: {warning}", file=sys.stderr)
    print(
        f"{given.out}: {request.size}, seed {request.seed}, {version}\n"
        f"text {t.text_s:.2f} s, denoise {t.denoise_s:.2f} s, decode {t.decode_s:.2f} s"
    )
    return 0


def _info(given: argparse.Namespace, config: Settings) -> int:
    if given.plan:
        return _plan(given, config)
    import torch

    from hidream.worker.loading import load_configured, sources_configured

    print(f"hidream   {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"home      {config.home}")
    status = 1
    for variant in Variant:
        try:
            model = load_configured(variant, config)
        except HiDreamError as error:
            print(f"{variant:9} not served: {_in_one_line(error.message)}")
            continue
        parts = {
            "transformer": [model.transformer],
            "text encoders": model.text.encoders,
            "autoencoder": [model.vae.module],
        }
        tensors = {name: [p for module in modules for p in module.parameters()] for name, modules in parts.items()}
        sizes = ", ".join(
            f"{name} {sum(p.numel() for p in ps):,} parameters ({sum(p.nbytes for p in ps) / 2**20:,.0f} MiB)"
            for name, ps in tensors.items()
        )
        print(f"{variant:9} {model.version} on {model.device}\n          {sizes}")
        for name, source in sources_configured(variant, config).items():
            print(f"          {name:15} {source.digest}  {source.path}")
        for name in model.loras.names():
            print(f"          LoRA {name}: {_in_one_line(model.loras.report(name))}")
        status = 0
    return status


def _plan(given: argparse.Namespace, config: Settings) -> int:
    import torch

    from hidream.model.memory import plan_report
    from hidream.model.memory.plan_input import PlanRequest
    from hidream.model.resolve import resolve_dtype, resolve_weight_format
    from hidream.worker.loading import plan_configured

    size = Size.parse(given.size)
    device = config.compute.device if config.compute.device in ("cpu", "mps") else "cuda"
    dtype, storage = (
        resolve_dtype(config.compute.dtype, torch.device(device)),
        resolve_weight_format(config.compute.storage),
    )
    request = PlanRequest(Variant(given.variant), size, storage, dtype, config.models.loras, given.bits)
    shape, options, parts = plan_configured(request, config)
    for part in parts:
        print(part)
    print(plan_report.describe(given.memory, given.host, options, device, shape))
    return 0


def _convert(given: argparse.Namespace, config: Settings) -> int:
    _let_threads_sleep()
    from tqdm import tqdm

    from hidream.formats.convert import convert, format_of
    from hidream.formats.targets import ConversionOptions, Format
    from hidream.hub.locate import locate
    from hidream.model.checkpoint.inferred import published_config

    to = Format(given.to) if given.to else format_of(given.target)
    options = ConversionOptions(to, given.type, given.shard_size, given.force, given.variant)
    with tqdm(unit="B", unit_scale=True, delay=0.2) as bar:

        def on_bytes(target: Path, done: int, total: int) -> None:
            bar.set_description(target.name, refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        written = convert(locate(str(given.source)), given.target, options, published_config, on_bytes)
    for path in written:
        print(path)
    return 0


def _models(given: argparse.Namespace, config: Settings) -> int:
    from hidream.commands import models

    return models.COMMANDS[given.command](given, config)


def _serve(given: argparse.Namespace, config: Settings) -> int:
    from hidream.server.serve import run

    return run(config, with_worker=True)


def _api(given: argparse.Namespace, config: Settings) -> int:
    from hidream.server.serve import run

    return run(config, with_worker=False)


def _worker(given: argparse.Namespace, config: Settings) -> int:
    _let_threads_sleep()
    from hidream.worker.main import run

    return run(config, with_parent=given.with_parent)


def _keys_create(given: argparse.Namespace, config: Settings) -> int:
    from hidream.store import keys

    limits = keys.Limits(**_limits_given(given))
    scopes = frozenset(map(keys.Scope, given.scopes))
    pepper = config.store.key_pepper
    options = {"pepper": pepper, "actor": _actor()}
    key, secret = _in_store(
        config, lambda database: keys.create(database, given.name, scopes, limits, given.priority, **options), make=True
    )
    print(f"{secret}\nshown once: only its hash is stored; the key's id is {key.id}")
    return 0


def _keys_list(given: argparse.Namespace, config: Settings) -> int:
    from hidream.store import keys

    for key in _in_store(config, keys.list_keys):
        revoked = f"revoked {_day(key.revoked_ms)}" if key.revoked_ms else "valid"
        scopes, limits = ",".join(sorted(key.scopes)), _limits(key)
        print(f"{key.id}  created {_day(key.created_ms)}  {revoked:18}  {scopes:11}  {limits:9}  {key.name}")
    return 0


def _limits(key: Key) -> str:
    """Describe the limits of a key, and its priority."""
    values = {label: getattr(key.limits, name) for name, label in arguments.LIMITS.items()}
    described = [f"{limit} {label}" for label, limit in values.items() if limit] or ["no limits"]
    return ", ".join(described + [f"priority {key.priority}"] * bool(key.priority))


def _limits_given(given: argparse.Namespace) -> dict[str, int]:
    """The limits on the command line, by name."""
    limits = {name: getattr(given, name) for name in arguments.LIMITS}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _keys_limit(given: argparse.Namespace, config: Settings) -> int:
    from hidream.store import keys

    changed = _limits_given(given)
    if not changed and given.priority is None:
        raise InvalidInput(
            "no limit is given; accepted: one or more of the flags that `hidream keys limit --help` lists"
        )
    options = {"priority": given.priority, "actor": _actor()}
    _in_store(config, lambda database: keys.set_limits(database, given.id, changed, **options))
    limits = [f"{limit or 'any number of'} {arguments.LIMITS[name]}" for name, limit in changed.items()]
    limits += [] if given.priority is None else [f"priority {given.priority}"]
    print(f"changed {given.id}: {', '.join(limits)}")
    return 0


def _keys_revoke(given: argparse.Namespace, config: Settings) -> int:
    from hidream.store import keys

    _in_store(config, lambda database: keys.revoke(database, given.id, actor=_actor()))
    print(f"revoked {given.id}")
    return 0


def _keys_rotate(given: argparse.Namespace, config: Settings) -> int:
    from hidream.store import keys

    pepper = config.store.key_pepper
    secret = _in_store(config, lambda database: keys.rotate(database, given.id, pepper=pepper, actor=_actor()))
    print(f"{secret}\nshown once: only its hash is stored; the old secret of {given.id} is invalid")
    return 0


def _keys_rotate_webhook(given: argparse.Namespace, config: Settings) -> int:
    from hidream.store import webhook_secrets
    from hidream.webhooks.signature import new_secret

    if given.retire:
        ended = _in_store(config, lambda database: webhook_secrets.retire(database, given.id, actor=_actor()))
        print("only the new secret signs from now on" if ended else f"no rotation of {given.id} is in progress")
        return 0
    overlap_ms = given.overlap * 3_600_000
    rotated = _in_store(
        config, lambda database: webhook_secrets.rotate(database, given.id, new_secret(), overlap_ms, actor=_actor())
    )
    if rotated.next:
        until = datetime.fromtimestamp(rotated.until_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        print(f"{rotated.next}\nsigns beside the old secret until {until}, and alone from then on")
    else:
        print(f"{rotated.secret}\nalone signs the webhooks of {given.id} from now on")
    return 0


def _keys_export(given: argparse.Namespace, config: Settings) -> int:
    from hidream.configured_stores import open_configured_store
    from hidream.outputs.object_store import Namespace
    from hidream.server.export import export

    outputs, uploads = (open_configured_store(config, each) for each in (Namespace.OUTPUTS, Namespace.UPLOADS))
    written = _in_store(config, lambda database: export(database, outputs, uploads, given.id, given.out, _actor()))
    print(
        f"{given.out}: {', '.join(f'{count} {table}' for table, count in sorted(written.items())) or 'the key alone'}"
    )
    return 0


def _keys_erase(given: argparse.Namespace, config: Settings) -> int:
    from hidream.configured_stores import open_configured_store
    from hidream.outputs.object_store import Namespace
    from hidream.server.erasure import erase

    if not given.yes:
        raise InvalidInput(
            f"all data of {given.id!r:.100} would be erased, which cannot be undone; accepted: with --yes"
        )
    outputs, uploads = (open_configured_store(config, each) for each in (Namespace.OUTPUTS, Namespace.UPLOADS))
    erased = _in_store(config, lambda database: erase(database, outputs, uploads, given.id, _actor()))
    print(f"revoked and erased {given.id}: {erased['predictions']} predictions, {erased['uploads']} uploads")
    return 0


def _audit(given: argparse.Namespace, config: Settings) -> int:
    from hidream.store import audit_log

    since_ms = 0 if given.since is None else round((time.time() - given.since) * 1000)
    for entry in _in_store(config, lambda database: audit_log.entries(database, since_ms)):
        at = datetime.fromtimestamp(entry.at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"at": at, "actor": entry.actor, "act": entry.act, "subject": entry.subject, "details": entry.details}
        details = " ".join(f"{name}={json.dumps(value)}" for name, value in entry.details.items())
        line = f"{at}  {entry.actor}  {entry.act}  {entry.subject}  {details}".rstrip()
        print(json.dumps(fields, ensure_ascii=False) if given.json else line)
    return 0


def _store_copy(given: argparse.Namespace, config: Settings) -> int:
    from hidream.commands.store import copy

    return copy(given.source, given.target, config, dry_run=given.dry_run)


def _actor() -> str:
    """Who runs this command, for the audit log: the names of the user and the host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name, as in a container
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _mcp(given: argparse.Namespace, config: Settings) -> int:
    from hidream.mcp_server import run

    return run(config)


def _in_store(config: Settings, call: Callable[[Database], Awaitable[T]], *, make: bool = False) -> T:
    """Open the database for one call; a missing database is an error, unless `make` creates it."""
    from hidream.store.database import Database

    async def run() -> T:
        async with Database.open(config.database_url, make=make) as database:
            return await call(database)

    return asyncio.run(run())


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


def _format_of(out: Path) -> ImageFormat:
    """The image format of a file name. Raises InvalidInput if the file cannot be written, before it is generated."""
    if out.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"--out is {str(out)!r:.100}; accepted: a name that ends in {', '.join(SUFFIXES)}")
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise InvalidInput(f"--out is {str(out)!r:.100}; accepted: a file in a folder that exists and may be written")
    return SUFFIXES[out.suffix.lower()]


def _size_of(given: str | None, image: bytes | None) -> Size:
    """The size on the command line, or else the size of the init image."""
    if given is not None:
        return Size.parse(given)
    if image is None:
        return DEFAULT_SIZE
    from hidream.images.measure import oriented_size

    return Size.near(*oriented_size("image", image))


def _bytes(path: Path | None) -> bytes | None:
    """The content of a file that a flag names."""
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


COMMANDS: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
    "generate": _generate,
    "serve": _serve,
    "api": _api,
    "worker": _worker,
    "keys create": _keys_create,
    "keys list": _keys_list,
    "keys limit": _keys_limit,
    "keys revoke": _keys_revoke,
    "keys rotate": _keys_rotate,
    "keys rotate-webhook": _keys_rotate_webhook,
    "keys export": _keys_export,
    "keys erase": _keys_erase,
    "audit": _audit,
    "store copy": _store_copy,
    "mcp": _mcp,
    "info": _info,
    "convert": _convert,
    "models pull": _models,
    "models list": _models,
    "models show": _models,
    "models verify": _models,
    "models rm": _models,
}
"""The function of each command; it returns the exit status."""

if __name__ == "__main__":
    raise SystemExit(main())
