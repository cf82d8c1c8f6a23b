"""Loading models and creating their engines from the settings: the only module that knows both.

A worker may serve several variants. Variants with the same text encoder files share the loaded text encoders; Dev, Full
and Fast do. Each variant has its own autoencoder, although the files are the same (0.17 GB for the published model in
bfloat16). While another variant is loaded, its own copy of the text encoders is in memory too, and is freed afterwards.
On a card, the memory plan of the variant must have room for it.

Importing this module imports torch, which takes seconds; code that must respond at once imports it late.
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
from hidream.hub import locate
from hidream.model.checkpoint.checkpoint import Checkpoint, Source, embedded, sources
from hidream.model.loading import load
from hidream.model.memory.candidates import HOST_RESERVE_BYTES
from hidream.model.memory.candidates import Options as PlanOptions
from hidream.model.memory.footprint import ModelShape
from hidream.model.memory.hardware import hardware_of
from hidream.model.memory.offload import own_tensors
from hidream.model.memory.plan_input import PlanRequest, partial
from hidream.model.model import Model
from hidream.model.resolve import HOST, resolve_device
from hidream.parts import ENCODERS, EVERYTHING, PARTS, TOKENIZERS
from hidream.settings.tables import Compute, Models, Settings
from hidream.settings.tables import Engine as EngineSettings
from hidream.types import Variant

TEXT_PARTS = (*(part.name for part in ENCODERS), *TOKENIZERS)
"""The eight parts that compute the embeddings of a prompt; equal parts compute equal embeddings."""
FEWER = "accepted: fewer variants in `[worker] serves`, more memory, or a smaller `[compute] storage`"


logger = logging.getLogger(__name__)


def load_configured(variant: Variant, settings: Settings, beside: Sequence[Model] = ()) -> Model:
    """Load the configured checkpoint of a variant, or the embedded one if none is configured.

    Takes seconds to minutes, and sets the number of torch threads of this process. The models in `beside` are loaded
    already: they take their share of the memory, and equal text encoders are shared. Raises ConfigurationError as
    `settings.Models.parts` and `model/loading.load` do, and if too little memory is left.
    """
    models, compute = settings.models, settings.compute
    checkpoint, *others = (_checkpoint(each, models) for each in (variant, *(model.variant for model in beside)))
    _check_memory(compute)
    if compute.threads:
        torch.set_num_threads(compute.threads)
    shared = [
        model for model, other in zip(beside, others, strict=True) if _text_paths(other) == _text_paths(checkpoint)
    ]
    try:
        model = load(
            variant,
            checkpoint,
            device=compute.device,
            dtype=compute.dtype,
            storage=compute.storage,
            memory_gb=_remaining_gb(compute, beside, shared),
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
    loaded = sources(checkpoint, settings.hash_cache)
    parts = " ".join(f"{name}={source.path}@{source.digest}" for name, source in loaded.items())
    logger.info("checkpoint variant=%s %s", variant, parts)
    if shared:
        return dataclasses.replace(model, text=shared[0].text)
    return dataclasses.replace(model, text=dataclasses.replace(model.text, together=compute.texts_together == "on"))


def sources_configured(variant: Variant, settings: Settings) -> dict[str, Source]:
    """Return the path and the digest of every part of a variant. Raises ConfigurationError."""
    return sources(_checkpoint(variant, settings.models), settings.hash_cache)


def plan_configured(request: PlanRequest, settings: Settings) -> tuple[ModelShape, PlanOptions, list[str]]:
    """Return the inputs of the memory plan for a variant's checkpoint, and the parts that it has.

    A missing part counts with the size of the published model in 16 bits; only the transformer must exist. Raises
    ConfigurationError.
    """
    parts = locate.parts(settings.models.parts(request.variant))
    checkpoint = Checkpoint(**parts).of_variant(request.variant)
    if "folder" in parts:
        checkpoint.part("transformer")
    found = [name for name in EVERYTHING if checkpoint.has(name)]
    return *partial(checkpoint, request), [f"{name}: {checkpoint.part(name)}" for name in found if name in PARTS]


def load_served(settings: Settings) -> dict[Variant, Model]:
    """Load all variants that this worker serves.

    Raises ConfigurationError as `load_configured` does, and if they do not fit into the machine's memory together.
    """
    models: dict[Variant, Model] = {}
    for variant in served(settings):
        models[variant] = load_configured(variant, settings, tuple(models.values()))
        _check_together(tuple(models.values()))
    return models


def served(settings: Settings) -> list[Variant]:
    """The variants that this worker serves: those in the settings, or else all that are configured."""
    if settings.worker.serves:
        return list(dict.fromkeys(Variant(name.strip()) for name in settings.worker.serves.split(",")))
    return list(settings.models.configured) or list(Variant)


def engines_of(models: Mapping[Variant, Model], settings: EngineSettings) -> dict[Variant, Engine]:
    """Create an engine for each model; they share the memory for requests. Takes seconds to measure a step."""
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
        similar = (each for each in engines if _speed_key(models[each]) == _speed_key(model))
        first = next(similar, None)
        measured = engines[first].measured if first else None
        engines[variant] = Engine(model, dataclasses.replace(options, measured=measured))
    return engines


def _checkpoint(variant: Variant, models: Models) -> Checkpoint:
    parts = locate.parts(models.parts(variant))
    if "folder" not in parts:
        return dataclasses.replace(embedded(variant), **parts)
    return Checkpoint(**parts).of_variant(variant)


def _text_paths(checkpoint: Checkpoint) -> list[str]:
    """The paths of the parts that compute embeddings. Raises CheckpointError."""
    return [str(checkpoint.part(name).resolve()) for name in TEXT_PARTS]


def _speed_key(model: Model) -> tuple[object, ...]:
    """What determines how long a step of a model takes."""
    return model.transformer.config, model.device, model.exact_version.compute


def _check_memory(compute: Compute) -> None:
    """Refuse a limit below the system's reserve, if the device uses the machine's memory. Raises ConfigurationError."""
    if compute.memory_gb and hardware_of(resolve_device(compute.device), compute.memory_gb).device_budget <= 0:
        raise ConfigurationError(
            f"compute.memory_gb is {compute.memory_gb:g}, and {HOST_RESERVE_BYTES / 1e9:g} GB are set aside for the "
            "system; accepted: 0, or more than that"
        )


def _remaining_gb(compute: Compute, beside: Sequence[Model], shared: Sequence[Model]) -> float:
    """The GB of `memory_gb` that other models leave; 0 if there is no limit to set. Raises ConfigurationError.

    In the machine's own memory, text encoders that will be shared do not count as taken, because the plan counts them.
    """
    device = resolve_device(compute.device)
    if not beside or (device.type == "cuda" and not compute.memory_gb):  # a card reports its free memory itself
        return compute.memory_gb
    taken = _taken(beside, device)
    if shared and device.type != "cuda":
        taken -= sum(value.nbytes for value in _values(shared[0].text.encoders).values())
    limit = (
        round(compute.memory_gb * 1e9) if device.type == "cuda" else hardware_of(device, compute.memory_gb).host_bytes
    )
    if limit <= taken:
        raise ConfigurationError(f"{_named(beside)} take {taken / 1e9:.1f} GB, and {limit / 1e9:.1f} GB are available")
    return (limit - taken) / 1e9


def _check_together(models: Sequence[Model]) -> None:
    """Refuse models that do not fit into the machine's memory together: a plan is for one model only."""
    taken, budget = _taken(models, HOST), hardware_of(HOST, 0).host_budget
    if len(models) > 1 and taken > budget:
        raise ConfigurationError(
            f"{_named(models)} take {taken / 1e9:.1f} GB of the machine's memory together, and "
            f"{budget / 1e9:.1f} GB are available beside what the system needs; {FEWER}"
        )


def _taken(models: Sequence[Model], device: torch.device) -> int:
    """Bytes of the models' weights on a device; shared weights count once."""
    modules = [module for model in models for module in (model.transformer, model.vae.module, *model.text.encoders)]
    return sum(value.nbytes for value in _values(modules).values() if value.device.type == device.type)


def _values(modules: Iterable[nn.Module]) -> dict[int, Tensor | Quantized]:
    """Parameters, buffers and quantised weights, each once."""
    parts = (part for module in modules for part in module.modules())
    return {id(value): value for part in parts for _, value in own_tensors(part)}


def _named(models: Sequence[Model]) -> str:
    return ", ".join(model.variant for model in models)
