"""A model that hidream loads, under ComfyUI's memory management.

ComfyUI loads and unloads models through ModelPatchers. Its own move weights between host and device. Hidream's memory
plan has settled instead what is where during each phase, and in which weight format; so `Resident` is loaded as a whole
and unloaded as a whole. Unloaded, it keeps nothing but the plan: neither device nor host memory. Loading it again reads
the files, which usually are in the operating system's cache.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import torch

if TYPE_CHECKING:
    from hidream.model.checkpoint.lora_folder import LoraFolder
    from hidream.model.latents.preview import Preview
    from hidream.model.loading import PlannedModel
    from hidream.model.model import Model
    from hidream.model.network.lora import Lora


class HiDream(torch.nn.Module):
    """What ComfyUI's lists of loaded models show; holds the loaded model, not as a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[Model] = []
        self.loras: dict[Path, LoraFolder] = {}
        self.preview: Preview | None = None

    def drop(self) -> None:
        """Let go of all that was loaded."""
        self.loaded.clear()
        self.loras.clear()
        self.preview = None
        gc.collect()
        _return_memory()


class Resident(comfy.model_patcher.ModelPatcher):
    """Loads and unloads a planned model as a whole, when ComfyUI says so."""

    def __init__(self, planned: PlannedModel, hash_cache: Path | None) -> None:
        device = planned.device
        size = planned.plan.peak.nbytes if planned.plan.hardware.separate else planned.plan.host_bytes
        super().__init__(HiDream(), device, torch.device("cpu"), size=max(size, 1))
        self._planned, self._hash_cache = planned, hash_cache

    def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
        """Load all of it, if it is not; return the bytes that this took."""
        if self.model.loaded:
            return 0
        with torch.inference_mode(False):  # its weights outlive ComfyUI's run
            self.model.loaded.append(self._planned.load(self._hash_cache))
        self.model.device = self.load_device
        self.model.model_loaded_weight_memory = self.size
        return int(self.size)

    def partially_unload(self, device_to: Any, memory_to_free: float = 0) -> int:
        """Unload nothing: `detach` unloads all of it."""
        return 0

    def detach(self, unpatch_all: bool = True) -> HiDream:
        """Unload all of it."""
        if unpatch_all:
            self.model.drop()
            self.model.device = self.offload_device
            self.model.model_loaded_weight_memory = 0
        return self.model

    def is_clone(self, other: Any) -> bool:
        """Whether another patcher is of the same model; this one is never cloned."""
        return self is other


@dataclass(eq=False)
class LocalModel:
    """What Load HiDream-I1 passes on: a model that is loaded when a node uses it."""

    patcher: Resident
    variant: str

    def load(self) -> Model:
        """Have ComfyUI make room and load the model, unless it is loaded."""
        comfy.model_management.load_models_gpu([self.patcher])
        model: Model = self.patcher.model.loaded[0]
        return model

    def preview(self) -> Preview:
        """The map from latents to small images, fitted once after each loading."""
        from hidream.model.latents.preview import fit_preview

        held = self.patcher.model
        if held.preview is None:
            model = held.loaded[0]
            with model.phases.autoencoding():
                held.preview = fit_preview(model.vae)
        return held.preview

    def lora(self, file: Path) -> Lora:
        """Read a LoRA for this model, if it is new or has changed. Raises InvalidInput when it cannot be used."""
        from hidream.model.checkpoint.lora_folder import LoraFolder
        from hidream.model.network.lora import layers

        held = self.patcher.model
        if file.parent not in held.loras:
            held.loras[file.parent] = LoraFolder(file.parent, layers(held.loaded[0].transformer), lazy=True)
        return held.loras[file.parent].named(file.stem)


def open_model(source: Path | None, variant: str | None, parts: dict[str, Path], weights: str) -> LocalModel:
    """Find all parts of a model, read their headers and plan its memory; it is loaded when it is used.

    source: a file of the transformer, a folder of diffusers, or None for nano. Raises InvalidInput or CheckpointError.
    """
    from hidream.library.source import Hub, find
    from hidream.model.loading import plan_model
    from hidream.settings import sources
    from hidream.settings.tables import Settings

    settled, checkpoint = find(source, variant, dict(parts), Hub())
    device = comfy.model_management.get_torch_device()
    if device.type != "cpu":
        comfy.model_management.free_memory(1e30, device)  # the plan is for a device that others have left
    planned = plan_model(
        settled, checkpoint, device=str(device), storage=weights, memory_gb=_budget_gb(device), compiled=False
    )
    hash_cache = None if source is None else Settings(home=sources.home(os.environ)).hash_cache
    return LocalModel(Resident(planned, hash_cache), str(settled))


def _return_memory() -> None:
    """Return freed memory to the system, where the C library keeps it otherwise: glibc does."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _budget_gb(device: torch.device) -> float:
    """What ComfyUI lets a model take of a device, in GB (10^9 bytes); 0 is all of it, on a CPU."""
    if device.type == "cpu":
        return 0.0
    total = comfy.model_management.get_total_memory(device) - comfy.model_management.extra_reserved_memory()
    return float(total) / 1e9
