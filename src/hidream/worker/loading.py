"""From settings to models, and to the engines that draw with them: the one place that knows both.

A worker may serve several variants. Text encoders that are the same files are there once: Dev's, Full's and Fast's are.
The autoencoder, which they share as well, is not (0.17 GB of the published model's in bfloat16). While a further
variant is loaded, its own copy of the encoders is there too, and is given up afterwards: on a card, its memory plan
must find room for that.

Imports torch and the model room, seconds of it; whoever must answer at once imports this file late.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

import torch
from torch import Tensor, nn

from hidream.engine.loop import Engine, Options
from hidream.engine.request import Policy
from hidream.errors import CheckpointError, ConfigurationError
from hidream.formats.quantized import Quantized
from hidream.model.checkpoint.checkpoint import Checkpoint, Source, embedded, sources
from hidream.model.loading import load
from hidream.model.memory.candidates import HOST_RESERVE_BYTES
from hidream.model.memory.candidates import Options as PlanOptions
from hidream.model.memory.footprint import ModelShape
from hidream.model.memory.hardware import hardware_of
from hidream.model.memory.offload import held
from hidream.model.memory.plan_input import PlanRequest, partial
from hidream.model.model import Model
from hidream.model.resolve import HOST, resolve_device
from hidream.parts import ENCODERS, EVERYTHING, PARTS, TOKENIZERS
from hidream.settings.tables import Compute, Models, Settings
from hidream.settings.tables import Engine as EngineSettings
from hidream.types import Variant

TEXT_PARTS = (*(part.name for part in ENCODERS), *TOKENIZERS)
"""What makes embeddings of a prompt; the same eight parts make the same embeddings."""
FEWER = "accepted: fewer variants in `[worker] serves`, more memory, or a smaller `[compute] storage`"


logger = logging.getLogger(__name__)


def load_configured(variant: Variant, settings: Settings, beside: Sequence[Model] = ()) -> Model:
    """Load the configured checkpoint of a variant, or without any configured the embedded one.

    Takes seconds to minutes, and settles how many threads torch uses in this process. Models that are `beside` it take
    their share of the memory; text encoders of theirs that are the same become its own. Raises ConfigurationError as
    `settings.Models.parts` and `model/loading.load` do, and when too little memory is left.
    """
    models, compute = settings.models, settings.compute
    checkpoint, *others = (_checkpoint(each, models) for each in (variant, *(model.variant for model in beside)))
    _check_memory(compute)
    if compute.threads:
        torch.set_num_threads(compute.threads)
    shared = [model for model, other in zip(beside, others, strict=True) if _texts(other) == _texts(checkpoint)]
    try:
        model = load(
            variant,
            checkpoint,
            device=compute.device,
            dtype=compute.dtype,
            storage=compute.storage,
            memory_gb=_left_gb(compute, beside, shared),
            loras=models.loras,
            hash_cache=settings.hash_cache,
            compiled={"auto": None, "on": True, "off": False}[compute.compiled],
        )
    except CheckpointError:
        raise
    except ConfigurationError as error:
        if not beside:
            raise
        raise ConfigurationError(f"{variant} beside {_named(beside)}: {error.message}; {FEWER}") from error
    read = sources(checkpoint, settings.hash_cache)
    parts = " ".join(f"{name}={source.path}@{source.digest}" for name, source in read.items())
    logger.info("checkpoint variant=%s %s", variant, parts)
    if shared:
        return dataclasses.replace(model, text=shared[0].text)
    return dataclasses.replace(model, text=dataclasses.replace(model.text, together=compute.texts_together == "on"))


def sources_configured(variant: Variant, settings: Settings) -> dict[str, Source]:
    """Say for every part of a variant where it lies, and name its content. Raises ConfigurationError."""
    return sources(_checkpoint(variant, settings.models), settings.hash_cache)


def plan_configured(asked: PlanRequest, settings: Settings) -> tuple[ModelShape, PlanOptions, list[str]]:
    """Read what the memory plan is asked for a variant's checkpoint, and name the parts that it has.

    A part that is missing has the published model's size, in 16 bits; only a checkpoint's transformer must be there.
    Raises ConfigurationError.
    """
    parts = settings.models.parts(asked.variant)
    checkpoint = Checkpoint(**parts).of_variant(asked.variant)
    if "folder" in parts:
        checkpoint.part("transformer")
    there = [name for name in EVERYTHING if checkpoint.has(name)]
    return *partial(checkpoint, asked), [f"{name}: {checkpoint.part(name)}" for name in there if name in PARTS]


def load_served(settings: Settings) -> dict[Variant, Model]:
    """Load all variants that this worker serves.

    Raises ConfigurationError as `load_configured` does, and when the machine's memory does not hold all of them.
    """
    models: dict[Variant, Model] = {}
    for variant in served(settings):
        models[variant] = load_configured(variant, settings, tuple(models.values()))
        _check_together(tuple(models.values()))
    return models


def served(settings: Settings) -> list[Variant]:
    """The variants that this worker serves: those that it is told to, or all there are."""
    if settings.worker.serves:
        return list(dict.fromkeys(Variant(name.strip()) for name in settings.worker.serves.split(",")))
    return list(settings.models.configured) or list(Variant)


def engines_of(models: Mapping[Variant, Model], settings: EngineSettings) -> dict[Variant, Engine]:
    """Make an engine for each model, which share the memory for requests; measures what a step bears, in seconds."""
    options = Options(
        policy=Policy(settings.policy),
        tokens=settings.tokens_per_step,
        memory_bytes=round(settings.memory_gb * 1e9 / len(models)),
        requests=settings.requests_max or None,
        ageing=settings.ageing,
        share=1 / len(models),
        encoding=Lock(),
    )
    engines: dict[Variant, Engine] = {}
    for variant, model in models.items():
        like = (each for each in engines if _form(models[each]) == _form(model))
        first = next(like, None)
        measured = engines[first].measured if first else None
        engines[variant] = Engine(model, dataclasses.replace(options, measured=measured))
    return engines


def _checkpoint(variant: Variant, models: Models) -> Checkpoint:
    parts = models.parts(variant)
    if "folder" not in parts:
        return dataclasses.replace(embedded(variant), **parts)
    return Checkpoint(**parts).of_variant(variant)


def _texts(checkpoint: Checkpoint) -> list[str]:
    """Where the parts lie that make embeddings. Raises CheckpointError."""
    return [str(checkpoint.part(name).resolve()) for name in TEXT_PARTS]


def _form(model: Model) -> tuple[object, ...]:
    """What decides how long a step of a model takes."""
    return model.transformer.config, model.device, model.exact_version.compute


def _check_memory(compute: Compute) -> None:
    """Refuse a limit below what the plan sets aside for the system, where the device's memory is the machine's."""
    if compute.memory_gb and hardware_of(resolve_device(compute.device), compute.memory_gb).device_budget <= 0:
        raise ConfigurationError(
            f"compute.memory_gb is {compute.memory_gb:g}, and {HOST_RESERVE_BYTES / 1e9:g} GB are set aside for the "
            "system; accepted: 0, or more than that"
        )


def _left_gb(compute: Compute, beside: Sequence[Model], shared: Sequence[Model]) -> float:
    """What other models leave of `memory_gb`; 0 where nothing has to be left. Raises ConfigurationError.

    Of what lies in the machine's own memory, text encoders that will be shared are left too: the plan counts them.
    """
    device = resolve_device(compute.device)
    if not beside or (device.type == "cuda" and not compute.memory_gb):  # a card says itself what is free
        return compute.memory_gb
    taken = _taken(beside, device)
    if shared and device.type != "cuda":
        taken -= sum(value.nbytes for value in _values(shared[0].text.encoders).values())
    limit = (
        round(compute.memory_gb * 1e9) if device.type == "cuda" else hardware_of(device, compute.memory_gb).host_bytes
    )
    if limit <= taken:
        raise ConfigurationError(
            f"{_named(beside)} take {taken / 1e9:.1f} GB, and {limit / 1e9:.1f} GB are all there is"
        )
    return (limit - taken) / 1e9


def _check_together(models: Sequence[Model]) -> None:
    """Refuse more in the machine's own memory than it has: a plan knows of one model only."""
    taken, there = _taken(models, HOST), hardware_of(HOST, 0).host_budget
    if len(models) > 1 and taken > there:
        raise ConfigurationError(
            f"{_named(models)} take {taken / 1e9:.1f} GB of the machine's memory together, and there are "
            f"{there / 1e9:.1f} GB beside the system's; {FEWER}"
        )


def _taken(models: Sequence[Model], device: torch.device) -> int:
    """Bytes of the models' weights that live on a device, what is shared counted once."""
    modules = [m for model in models for m in (model.transformer, model.vae.module, *model.text.encoders)]
    return sum(value.nbytes for value in _values(modules).values() if value.device.type == device.type)


def _values(modules: Iterable[nn.Module]) -> dict[int, Tensor | Quantized]:
    """Parameters, buffers and quantised weights, each once."""
    parts = (part for module in modules for part in module.modules())
    return {id(value): value for part in parts for _, value in held(part)}


def _named(models: Sequence[Model]) -> str:
    return ", ".join(model.variant for model in models)
