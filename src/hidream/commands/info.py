"""`hidream info`: models, parameters, memory and device; with `--plan` how a model would use some memory."""

from __future__ import annotations

from typing import Any

import click

from hidream import __version__
from hidream.commands import values
from hidream.commands.grammar import Command, Flag, Given
from hidream.commands.printing import in_one_line, json_line, result
from hidream.commands.setting_flags import configured, model_flags, variant_flag
from hidream.commands.threads import let_threads_sleep
from hidream.commands.values import OneOf, Value
from hidream.errors import HiDreamError
from hidream.settings.tables import Settings
from hidream.types import DEFAULT_SIZE, Size, Variant

CARDS = "8,12,16,24,32,48,80"
HOST_GB = 64.0


def _info(given: Given, config: Settings) -> int:
    if given.plan:
        return _plan(given, config)
    let_threads_sleep()
    import torch

    head = {"hidream": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if not given.json:
        click.echo(f"hidream   {__version__}, torch {torch.__version__}, {head['threads']} threads")
        click.echo(f"home      {config.home}")
    found = {str(variant): _model(variant, config, quiet=given.json) for variant in Variant}
    if given.json:
        json_line({**head, "home": str(config.home), "models": found})
    return 0 if any("version" in model for model in found.values()) else 1


def _model(variant: Variant, config: Settings, *, quiet: bool) -> dict[str, Any]:
    """Load a model, and show what it consists of, line by line unless `quiet`."""
    from hidream.worker.loading import load_configured, sources_configured

    def say(text: str) -> None:
        if not quiet:
            click.echo(text)

    try:
        model = load_configured(variant, config)
    except HiDreamError as error:
        say(f"{variant:9} not served: {in_one_line(error.message)}")
        return {"error": error.message}
    modules = {"transformer": [model.transformer], "text encoders": model.text.encoders}
    modules["autoencoder"] = [model.vae.module]
    tensors = {name: [p for module in each for p in module.parameters()] for name, each in modules.items()}
    counts = {name: (sum(p.numel() for p in ps), sum(p.nbytes for p in ps)) for name, ps in tensors.items()}
    sizes = (f"{name} {count:,} parameters ({size / 2**20:,.0f} MiB)" for name, (count, size) in counts.items())
    say(f"{variant:9} {model.version} on {model.device}\n          {', '.join(sizes)}")
    parts = {
        name: {"digest": source.digest, "path": str(source.path)}
        for name, source in sources_configured(variant, config).items()
    }
    for name, part in parts.items():
        say(f"          {name:15} {part['digest']}  {part['path']}")
    loras = {name: in_one_line(model.loras.report(name)) for name in model.loras.names()}
    for name, report in loras.items():
        say(f"          LoRA {name}: {report}")
    parameters = {name: {"parameters": count, "bytes": size} for name, (count, size) in counts.items()}
    return {
        "version": model.version,
        "device": str(model.device),
        "sizes": parameters,
        "parts": parts,
        "loras": loras,
    }


def _plan(given: Given, config: Settings) -> int:
    import torch

    from hidream.model.memory import plan_report
    from hidream.model.memory.plan_input import PlanRequest
    from hidream.model.resolve import resolve_dtype, resolve_weight_format
    from hidream.worker.loading import plan_configured

    size = DEFAULT_SIZE if given.size is None else Size.parse(given.size)
    device = config.compute.device if config.compute.device in ("cpu", "mps") else "cuda"
    dtype, storage = (
        resolve_dtype(config.compute.dtype, torch.device(device)),
        resolve_weight_format(config.compute.storage),
    )
    variant, config = configured(given, config)
    request = PlanRequest(variant, size, storage, dtype, config.models.loras, given.bits or 4)
    shape, options, parts = plan_configured(request, config)
    cards = given.memory or values.cards(CARDS)
    lines = [*parts, plan_report.describe(cards, given.host_memory or HOST_GB, options, device, shape)]
    data = {"variant": str(variant), "size": str(size), "parts": parts, "memory_gb": cards, "plan": lines[-1]}
    result(given, data, lines)
    return 0


ONLY_WITH_PLAN = ("memory", "host_memory", "size", "bits")


def _check(given: Given) -> None:
    """Refuse a flag of the plan without `--plan`."""
    for name in ONLY_WITH_PLAN:
        if getattr(given, name) is not None and not given.plan:
            raise click.UsageError(f"--{name.replace('_', '-')}: given without --plan; accepted: with it")


def _flags_of_plan() -> list[click.Parameter]:
    cards, host = Value(values.cards, "cards"), Value(values.host, "host")
    return [
        Flag(["--memory"], type=cards, metavar="GB", help=f"with --plan: memory of cards in GB (default: {CARDS})"),
        Flag(
            ["--host-memory"],
            former=["--host"],
            type=host,
            metavar="GB",
            help=f"with --plan: GB of host memory beside the card (default: {HOST_GB:g})",
        ),
        Flag(["--size"], metavar="SIZE", help=f"with --plan: width*height in pixels (default: {DEFAULT_SIZE})"),
        Flag(["--bits"], type=OneOf((16, 8, 4)), help="with --plan: fewest bits of a weight (default: 4)"),
    ]


INFO = Command(
    _info,
    [
        *(flag for flag in model_flags() if "--memory-gb" not in flag.opts),
        variant_flag(),
        Flag(
            ["--plan"],
            is_flag=True,
            help="show instead how a model uses some memory: --model, or else the published one",
        ),
        *_flags_of_plan(),
    ],
    check=_check,
    extras="torch",
    examples=[
        "hidream info",
        "hidream info --plan --memory 12 --host-memory 32",
        "hidream info --plan --memory 12GB --model hidream-i1-dev-Q4_K_M.gguf",
    ],
)
