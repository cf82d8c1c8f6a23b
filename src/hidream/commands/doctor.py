"""`hidream doctor`: what is wrong with this machine and its configuration, and how to mend it.

Each check yields findings. The exit status is 1 if one of them is wrong; warnings do not change it. Nothing is changed,
except that the object store's own check writes and deletes a small file where files are stored already.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from hidream import __version__
from hidream.commands.exit_status import ExitStatus
from hidream.commands.grammar import Command, Flag, Given
from hidream.commands.in_store import in_store
from hidream.commands.printing import in_one_line, json_line, styled
from hidream.commands.setting_flags import model_flags, variant_flag
from hidream.commands.threads import let_threads_sleep
from hidream.commands.values import PATH
from hidream.errors import HiDreamError
from hidream.settings import private
from hidream.settings.tables import Settings
from hidream.types import DEFAULT_SIZE

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "gguf", "fastapi", "sqlalchemy", "obstore")
"""Packages whose versions people need in a report."""
DISK_LOW_BYTES = 2**30
SQLITE = "sqlite+aiosqlite:///"


class State(StrEnum):
    """How good a finding is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and how to mend it."""

    subject: str
    state: State
    text: str
    cure: str = ""


Check = Callable[[Settings], Iterator[Finding]]
_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.WRONG: "red"}


def _doctor(given: Given, config: Settings) -> int:
    let_threads_sleep()
    if given.reference:
        from hidream.commands.reference import compare

        return compare(given, config)
    return report(given, (finding for check in CHECKS for finding in _findings(check, config)))


def report(given: Given, findings: Iterable[Finding]) -> int:
    """Print findings as they come, or with `--json` at the end; return the exit status."""
    found = []
    for finding in findings:
        found.append(finding)
        if not given.json:
            _say(finding)
    wrong = [finding for finding in found if finding.state is State.WRONG]
    if given.json:
        json_line({"ok": not wrong, "findings": [dataclasses.asdict(finding) for finding in found]})
    else:
        click.echo(f"{len(wrong)} of {len(found)} findings are wrong" if wrong else "nothing is wrong")
    return ExitStatus.FAILED if wrong else ExitStatus.OK


def _findings(check: Check, config: Settings) -> Iterator[Finding]:
    """Run a check; an error of ours is a finding too."""
    subject = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check(config)
    except HiDreamError as error:
        what, _, cure = in_one_line(error.message).partition("; accepted: ")
        yield Finding(subject, State.WRONG, what, f"accepted: {cure}" if cure else "")
    except ImportError as error:
        yield Finding(subject, State.WRONG, f"{error.name} is not installed", "pip install 'hidream[torch,server]'")
    except OSError as error:
        yield Finding(subject, State.WRONG, f"{error.filename or ''} {error.strerror or error}".strip())


def _say(finding: Finding) -> None:
    mark = styled(f"{finding.state:7}", _COLOURS[finding.state])
    click.echo(f"{mark}  {finding.subject:12}  {finding.text}")
    if finding.cure:
        click.echo(f"{'':23}{finding.cure}")


def _versions(config: Settings) -> Iterator[Finding]:
    text = f"hidream {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    installed = {name: _version(name) for name in PACKAGES}
    yield Finding("versions", State.OK, f"{text}, {', '.join(f'{k} {v}' for k, v in installed.items() if v)}")
    if missing := [name for name, found in installed.items() if found is None]:
        cure = "pip install 'hidream[torch]' for the model, 'hidream[server]' for the server"
        yield Finding("versions", State.WARNING, f"not installed: {', '.join(missing)}", cure)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device(config: Settings) -> Iterator[Finding]:
    from hidream.model.memory.hardware import hardware_of
    from hidream.model.resolve import resolve_device

    device = resolve_device(config.compute.device)
    hardware = hardware_of(device, config.compute.memory_gb)
    budget = hardware.device_budget if device.type == "cuda" else hardware.host_budget
    state = State.OK if budget > 0 else State.WRONG
    yield Finding("device", state, f"{device}, {budget / 1e9:.1f} GB may be used")
    if device.type == "cpu" and importlib.util.find_spec("torch") and shutil.which("nvidia-smi"):
        cure = "install torch with CUDA: https://pytorch.org/get-started"
        yield Finding("device", State.WARNING, "there is an NVIDIA driver, but torch does not see a card", cure)


def _threads(config: Settings) -> Iterator[Finding]:
    import torch

    cores = _cores()
    threads = config.compute.threads or torch.get_num_threads()
    yield Finding("threads", State.OK, f"{threads} of torch on {cores} cores")
    if threads > cores:
        cure = "set `[compute] threads`, --threads or OMP_NUM_THREADS to the number of cores"
        yield Finding("threads", State.WARNING, f"{threads} threads share {cores} cores, which is slow", cure)
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        text = (
            "OMP_WAIT_POLICY is active: waiting threads keep their cores busy, which is ruinous beside other processes"
        )
        yield Finding("threads", State.WARNING, text, "unset OMP_WAIT_POLICY, unless the machine is for hidream alone")


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _model(config: Settings) -> Iterator[Finding]:
    from hidream.model.memory import plan_report
    from hidream.model.memory.hardware import hardware_of
    from hidream.model.memory.plan import plan
    from hidream.model.memory.plan_input import PlanRequest
    from hidream.model.resolve import resolve_device, resolve_dtype, resolve_weight_format
    from hidream.worker.loading import plan_configured, served, sources_configured

    device, compute = resolve_device(config.compute.device), config.compute
    shown = set()
    for variant in served(config):
        for name, source in sources_configured(variant, config).items():
            if source.path not in shown:  # variants share most parts
                yield Finding(str(variant), State.OK, f"{name} {source.digest} {source.path}")
            shown.add(source.path)
        if not config.models.configured:
            continue  # nano fits everywhere
        storage = resolve_weight_format(compute.storage)
        request = PlanRequest(variant, DEFAULT_SIZE, storage, resolve_dtype(compute.dtype, device), config.models.loras)
        shape, options, _ = plan_configured(request, config)
        found = plan(hardware_of(device, compute.memory_gb), shape, options)
        state, cure = (
            (State.OK, "") if found.fits else (State.WRONG, f"hidream info --plan --variant {variant} says more")
        )
        yield Finding(str(variant), state, in_one_line(plan_report.verdict(found, shape)), cure)


def _loras(config: Settings) -> Iterator[Finding]:
    from hidream.model.checkpoint.lora_folder import lora_files

    if config.models.loras is not None:
        yield Finding("loras", State.OK, f"{len(lora_files(config.models.loras))} in {config.models.loras}")


def _home(config: Settings) -> Iterator[Finding]:
    home = config.home
    if home.exists() and not os.access(home, os.W_OK):
        yield Finding("home", State.WRONG, f"{home} cannot be written", "change its owner, or set HIDREAM_HOME")
    else:
        yield Finding("home", State.OK, f"{home}{'' if home.exists() else ', which does not exist yet'}")
    for path, cure in private.exposed(config, os.environ):
        yield Finding("home", State.WARNING, f"other users can read {path}", cure)
    free = shutil.disk_usage(next(each for each in (home, *home.parents) if each.exists())).free
    low = free < max(DISK_LOW_BYTES, config.store.free_min_mb * 10**6)
    cure = "free some space, or set HIDREAM_HOME to another disk" if low else ""
    yield Finding("home", State.WRONG if low else State.OK, f"{free / 1e9:.1f} GB are free on its disk", cure)


def _database(config: Settings) -> Iterator[Finding]:
    from hidream.store import keys

    url = config.database_url
    shown = url.partition("@")[2] if "@" in url else url
    if url.startswith(SQLITE) and not Path(url.removeprefix(SQLITE)).exists():
        yield Finding("database", State.OK, f"{shown} does not exist yet; `hidream serve` creates it")
        return
    found = in_store(config, keys.list_keys)
    yield Finding("database", State.OK, f"{shown} can be opened; it has {len(found)} keys")


def _object_store(config: Settings) -> Iterator[Finding]:
    from hidream.configured_stores import open_configured_store
    from hidream.outputs.object_store import Namespace

    for namespace in Namespace:
        place = f"{config.outputs_url.rstrip('/')}/{namespace}"
        if "://" not in config.outputs_url and not Path(place).exists():
            yield Finding("files", State.OK, f"{place} does not exist yet; `hidream serve` creates it")
            continue
        asyncio.run(open_configured_store(config, namespace).check())
        yield Finding("files", State.OK, f"{place} can be written")


def _port(config: Settings) -> Iterator[Finding]:
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            text, cure = (
                f"{host}:{port} cannot be used: {error.strerror}",
                "another --port; or a hidream runs there already",
            )
            yield Finding("port", State.WARNING, text, cure)
            return
    yield Finding("port", State.OK, f"{host}:{port} is free")


CHECKS: tuple[Check, ...] = (
    _versions,
    _device,
    _threads,
    _model,
    _loras,
    _home,
    _database,
    _object_store,
    _port,
)

DOCTOR = Command(
    _doctor,
    [
        Flag(
            ["--reference"],
            is_flag=True,
            help="compare instead images of ours with those of diffusers, from the same files and seed",
        ),
        Flag(["--prompt"], metavar="PROMPT", help="with --reference: the prompt (default: a fox in the snow)"),
        Flag(["--seed"], type=int, help="with --reference: the seed (default: 7)"),
        Flag(["--steps"], type=int, help="with --reference: the number of steps (default: that of the variant)"),
        Flag(["--out", "-o"], type=PATH, metavar="FILE", help="with --reference: both images side by side"),
        variant_flag(),
        *model_flags(),
    ],
    extras="torch,server",
    details="The exit status is 1 if something is wrong. With --reference it is 1 if the images differ.",
    examples=[
        "hidream doctor",
        "hidream doctor --json | jq '.findings[] | select(.state != \"ok\")'",
        "hidream doctor --reference --model HiDream-I1-Dev --llama Meta-Llama-3.1-8B-Instruct --out both.png",
    ],
)
