"""The numbers of the model: the transformer's configuration and the preset of each published variant.

Knows no tensors. The values come from a checkpoint's `transformer/config.json` and from the reference's
`inference.py` (HiDream-ai/HiDream-I1 @9b42dd6, lines 16-38).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hidream.errors import CheckpointError
from hidream.types import SAMPLING_PRESETS, Conformance, Sampler, SamplingPreset, Variant

TIMESTEPS = 1000
"""The model's time runs from 0 to this; sigma = time / TIMESTEPS."""
NUMBER_MAX = 65_536
"""Of any number of a configuration; the published ones have up to 4096."""
PUBLISHED_TOKENS = 4096
"""Image tokens of the published checkpoints' largest shape: their `max_resolution` of 128 × 128 latent cells."""


def sampling_preset(
    variant: Variant,
    conformance: Conformance = Conformance.DIFFUSERS,
    sampler: Sampler | None = None,
    max_tokens: int = PUBLISHED_TOKENS,
) -> SamplingPreset:
    """How `variant` is sampled, by the requested reference, and with another sampler if one is requested.

    The official pipeline gives UniPC a shift that follows from the model's largest shape, `max_tokens`, and passes
    over its own table's; diffusers has that argument commented out (0.42.1, pipeline_hidream_image.py, line 909).
    """
    preset = SAMPLING_PRESETS[variant]
    preset = dataclasses.replace(preset, sampler=sampler or preset.sampler)
    if conformance is Conformance.OFFICIAL and preset.sampler is Sampler.UNIPC:
        return dataclasses.replace(preset, shift=official_shift(max_tokens))
    return preset


def official_shift(max_tokens: int) -> float:
    """Return exp(μ), with μ linear in the tokens: 0.5 at 256 and 1.15 at 4096, thus 3.158 for the published model.

    Source: HiDream-ai/HiDream-I1 @9b42dd6, pipeline_hidream_image.py, lines 40-50 and 636-639.
    """
    return math.exp(0.5 + (1.15 - 0.5) * (max_tokens - 256) / (4096 - 256))


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """`transformer/config.json`; the defaults are those of the 17 B checkpoints."""

    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    num_layers: int = 16
    num_single_layers: int = 32
    attention_head_dim: int = 128
    num_attention_heads: int = 20
    caption_channels: tuple[int, int] = (4096, 4096)  # T5, Llama
    text_emb_dim: int = 2048
    num_routed_experts: int = 4
    num_activated_experts: int = 2
    axes_dims_rope: tuple[int, ...] = (64, 32, 32)
    max_resolution: tuple[int, int] = (128, 128)
    llama_layers: tuple[int, ...] = (*range(32), *(31,) * 16)

    @property
    def dim(self) -> int:
        """Width D of the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def max_tokens(self) -> int:
        """Image tokens of the largest trained shape, to which the reference pads what is not square."""
        return self.max_resolution[0] * self.max_resolution[1] // self.patch_size**2

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """Read a published configuration; keys that only concern diffusers are ignored.

        Raises CheckpointError when it describes another architecture.
        """
        if values.get("_class_name") != "HiDreamImageTransformer2DModel":
            raise CheckpointError(
                f"transformer/config.json names the class {values.get('_class_name')!r:.100}; "
                "accepted: HiDreamImageTransformer2DModel"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in known and value is not None
        }
        for name, value in given.items():
            _check_number(name, value)
        config = cls(**given)
        config.check()
        return config

    def check_size(self, tensors: int) -> None:
        """Raise CheckpointError on more blocks and experts than a file of so many tensors can have.

        Call it before anything is built for each of them: a number in a text costs nothing, a million modules do.
        """
        blocks = self.num_layers + self.num_single_layers
        if blocks * self.num_routed_experts > tensors:
            raise CheckpointError(
                f"transformer/config.json has {blocks:,} blocks of {self.num_routed_experts:,} experts, and its files "
                f"have {tensors:,} tensors; accepted: those of one model"
            )

    def check(self) -> None:
        """Raise CheckpointError on numbers that do not fit together."""
        blocks = self.num_layers + self.num_single_layers
        if not blocks or self.dim > NUMBER_MAX or any(axis % 2 for axis in self.axes_dims_rope):
            raise CheckpointError(
                f"the transformer has {blocks} blocks, is {self.dim} wide and turns {self.axes_dims_rope} channels; "
                f"accepted: one block or more, a width of at most {NUMBER_MAX}, even numbers of channels"
            )
        if len(self.llama_layers) != blocks:
            raise CheckpointError(
                f"llama_layers has {len(self.llama_layers)} entries; accepted: one for each of {blocks} blocks"
            )
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise CheckpointError(
                f"axes_dims_rope {self.axes_dims_rope} adds up to {sum(self.axes_dims_rope)}; "
                f"accepted: attention_head_dim = {self.attention_head_dim}"
            )
        if self.num_activated_experts > self.num_routed_experts:
            raise CheckpointError(
                f"num_activated_experts is {self.num_activated_experts}; "
                f"accepted: at most num_routed_experts = {self.num_routed_experts}"
            )
        if self.in_channels != self.out_channels:
            raise CheckpointError(
                f"in_channels {self.in_channels} and out_channels {self.out_channels} differ; accepted: equal"
            )


def _check_number(name: str, value: object) -> None:
    """Raise CheckpointError on a number of the configuration that is none, or a list of another length."""
    own = getattr(TransformerConfig(), name)
    least = 0 if "layers" in name else 1
    numbers = value if isinstance(value, tuple) else (value,)
    is_list = isinstance(own, tuple)
    fits = (
        len(numbers) <= NUMBER_MAX
        and isinstance(value, tuple) is is_list
        and (not is_list or least == 0 or len(numbers) == len(own))
    )
    if not fits or not all(type(number) is int and least <= number <= NUMBER_MAX for number in numbers):
        what = f"{len(own) if least else 'some'} whole numbers" if is_list else "a whole number"
        raise CheckpointError(
            f"transformer/config.json has {name} = {value!r:.100}; accepted: {what} from {least} to {NUMBER_MAX}"
        )
