"""A loaded model: the modules of one checkpoint, where they compute, and the versions that name its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from hidream.model.checkpoint.lora_folder import LoraFolder
from hidream.model.latents.autoencoder import Autoencoder
from hidream.model.memory.phases import Phases
from hidream.model.network.lora import Lora
from hidream.model.network.transformer import Transformer
from hidream.model.text.text_encoders import TextEncoders
from hidream.request import LoraUse
from hidream.types import Mode, Variant


@dataclass(frozen=True, slots=True)
class Version:
    """What decides an image beside its request: same request, seed and version, same image. Prints as one word."""

    variant: Variant
    weights: str  # twelve hexadecimal digits that name their content
    compute: str  # device, type, and the weight format unless that is the type
    release: str
    mode: str = Mode.EXACT.value  # and "-bfloat16" if its copy computes in that type

    def __str__(self) -> str:
        return f"hidream-i1-{self.variant}/{self.weights}/{self.mode}/{self.compute}/{self.release}"


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded checkpoint."""

    variant: Variant
    exact_version: Version
    text: TextEncoders
    transformer: Transformer
    vae: Autoencoder
    best_tokens: int
    device: torch.device
    dtype: torch.dtype
    refines: bool = True  # whether it can refine a nearly finished image on grids larger than its best
    loras: LoraFolder = field(default_factory=LoraFolder)
    phases: Phases = field(default_factory=Phases)
    bfloat16_copy: Transformer | None = None  # for all modes except the exact one

    def transformer_of(self, mode: Mode) -> tuple[Transformer, torch.dtype]:
        """Return the transformer of a mode, and the type that it computes in."""
        if self.bfloat16_copy is None or mode is Mode.EXACT:
            return self.transformer, self.dtype
        return self.bfloat16_copy, torch.bfloat16

    @property
    def version(self) -> str:
        """The version of this model in the default mode, which is the exact one."""
        return self.version_of(Mode.EXACT)

    def version_of(self, mode: Mode) -> str:
        """The version of this model in a mode."""
        copy = "-bfloat16" * (self.transformer_of(mode)[0] is not self.transformer)
        return str(replace(self.exact_version, mode=f"{mode}{copy}"))

    @property
    def token_px(self) -> int:
        """Pixels that one image token covers, along one side."""
        return self.vae.factor * self.transformer.config.patch_size

    def weighted_loras(self, uses: Sequence[LoraUse]) -> tuple[tuple[Lora, float], ...]:
        """Return the LoRAs that a request names, in host memory, with the weights that it gives them.

        Raises InvalidInput on a LoRA that is not known or cannot be used.
        """
        return tuple((self.loras.named(use.name), use.weight) for use in uses)
