"""A loaded model: the modules of one checkpoint, where they compute, and the versions that name its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hidream.model.checkpoint.lora_folder import LoraFolder
from hidream.model.latents.autoencoder import Autoencoder
from hidream.model.memory.phases import Phases
from hidream.model.network import lora
from hidream.model.network.linear import Changes
from hidream.model.network.transformer import Transformer
from hidream.model.text.text_encoders import TextEncoders
from hidream.types import LoraUse, Mode, Variant


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded checkpoint."""

    variant: Variant
    versions: str  # with "{mode}" where a version names its mode
    text: TextEncoders
    transformer: Transformer
    vae: Autoencoder
    best_tokens: int
    device: torch.device
    dtype: torch.dtype
    refines: bool = True  # whether it draws well on grids larger than its best, from a picture that is nearly done
    loras: LoraFolder = field(default_factory=LoraFolder)
    phases: Phases = field(default_factory=Phases)
    twin: Transformer | None = None  # in bfloat16, for all modes but the exact one

    def transformer_of(self, mode: Mode) -> tuple[Transformer, torch.dtype]:
        """Return the transformer that draws in a mode, and the type that it computes in."""
        exact = self.twin is None or mode is Mode.EXACT
        return (self.transformer, self.dtype) if exact or self.twin is None else (self.twin, torch.bfloat16)

    @property
    def version(self) -> str:
        """What pictures are drawn by when nothing is asked: variant, weights, mode, device and type, release."""
        return self.version_of(Mode.EXACT)

    def version_of(self, mode: Mode) -> str:
        """The version of this model in a mode: same request, seed and version, same picture."""
        twin = "-bfloat16" * (self.transformer_of(mode)[0] is not self.transformer)
        return self.versions.format(mode=f"{mode}{twin}")

    @property
    def token_px(self) -> int:
        """Pixels that one image token covers, along one side."""
        return self.vae.factor * self.transformer.config.patch_size

    def changes(self, loras: Sequence[LoraUse], dtype: torch.dtype | None = None) -> tuple[Changes, tuple[str, ...]]:
        """What the LoRAs of a request change, for products in `dtype` (the model's own), and what of them is left out.

        Raises InvalidInput on a LoRA that is not known or cannot be used.
        """
        named = [(self.loras.named(use.name), use.weight) for use in loras]
        return lora.changes(named, self.device, dtype or self.dtype), lora.warnings(named)
