"""The parts of a HiDream-I1 checkpoint: one table of their names, folders, settings, flags and classes.

Knows no files and no tensors. `PARTS` has the parts with weights, in the order in which their digests are joined to the
model's; each text encoder names its tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What of HiDream-I1 a file may hold."""

    TRANSFORMER = "a HiDream-I1 transformer"
    CLIP = "a CLIP text encoder"
    T5 = "a T5 encoder"
    LLAMA = "a Llama"
    VAE = "an autoencoder"


@dataclass(frozen=True, slots=True)
class Part:
    """One part with weights."""

    name: str  # of its folder in the diffusers layout
    setting: str  # in `[models]`, and of the field of `Checkpoint` that names it alone
    title: str  # in messages
    about: str  # in the help of its flag
    kind: Kind
    library: str  # whose classes its configuration names
    classes: tuple[str, ...]  # of which the first is the published one
    family: str  # how the names of all its classes begin
    comfy_folders: tuple[str, ...]  # where ComfyUI looks for it
    comfy_published: str  # its file in Comfy-Org/HiDream-I1_ComfyUI
    comfy_file: str  # the file that is written for ComfyUI; "{}" is the model's name
    tokenizer: str = ""  # the folder of its tokenizer
    width: int = 0  # of a CLIP, by which the two are distinguished
    large: bool = False  # whether it is worth fewer than 16 bits

    @property
    def flag(self) -> str:
        """The command line's flag that names it."""
        return "--model" if self.kind is Kind.TRANSFORMER else f"--{self.setting.replace('_', '-')}"


TRANSFORMER = Part(
    name="transformer",
    setting="transformer",
    title="the transformer",
    about="the transformer",
    kind=Kind.TRANSFORMER,
    library="diffusers",
    classes=("HiDreamImageTransformer2DModel",),
    family="HiDreamImageTransformer2DModel",
    comfy_folders=("diffusion_models", "unet"),
    comfy_published="hidream_i1_{dev,full,fast}_*.safetensors",
    comfy_file="diffusion_models/{}.safetensors",
    large=True,
)
VAE = Part(
    name="vae",
    setting="vae",
    title="the autoencoder",
    about="the autoencoder, a folder or a file",
    kind=Kind.VAE,
    library="diffusers",
    classes=("AutoencoderKL", "AutoencoderDC"),
    family="Autoencoder",
    comfy_folders=("vae",),
    comfy_published="ae.safetensors",
    comfy_file="vae/ae.safetensors",
)
CLIP_L = Part(
    name="text_encoder",
    setting="clip_l",
    title="CLIP-L",
    about="HiDream's CLIP-L, a folder or a file",
    kind=Kind.CLIP,
    library="transformers",
    classes=("CLIPTextModelWithProjection", "CLIPTextModel"),
    family="CLIPText",
    comfy_folders=("text_encoders", "clip"),
    comfy_published="clip_l_hidream.safetensors",
    comfy_file="text_encoders/clip_l_hidream.safetensors",
    tokenizer="tokenizer",
    width=768,
)
CLIP_G = Part(
    name="text_encoder_2",
    setting="clip_g",
    title="CLIP-G",
    about="HiDream's CLIP-G, a folder or a file",
    kind=Kind.CLIP,
    library="transformers",
    classes=("CLIPTextModelWithProjection", "CLIPTextModel"),
    family="CLIPText",
    comfy_folders=("text_encoders", "clip"),
    comfy_published="clip_g_hidream.safetensors",
    comfy_file="text_encoders/clip_g_hidream.safetensors",
    tokenizer="tokenizer_2",
    width=1280,
)
T5 = Part(
    name="text_encoder_3",
    setting="t5",
    title="T5",
    about="T5-XXL's encoder, a folder or a file",
    kind=Kind.T5,
    library="transformers",
    classes=("T5EncoderModel", "T5ForConditionalGeneration"),
    family="T5",
    comfy_folders=("text_encoders", "clip"),
    comfy_published="t5xxl_*.safetensors",
    comfy_file="text_encoders/t5xxl.safetensors",
    tokenizer="tokenizer_3",
    large=True,
)
LLAMA = Part(
    name="text_encoder_4",
    setting="llama",
    title="Llama",
    about="Llama-3.1-8B-Instruct, a folder or a file",
    kind=Kind.LLAMA,
    library="transformers",
    classes=("LlamaForCausalLM", "LlamaModel"),
    family="Llama",
    comfy_folders=("text_encoders", "clip"),
    comfy_published="llama_3.1_8b_instruct_*.safetensors",
    comfy_file="text_encoders/llama_3.1_8b_instruct.safetensors",
    tokenizer="tokenizer_4",
    large=True,
)

ENCODERS = (CLIP_L, CLIP_G, T5, LLAMA)
"""The text encoders, in the order in which the transformer takes them."""
PARTS = {part.name: part for part in (TRANSFORMER, VAE, *ENCODERS)}
"""All parts with weights, by name."""
TOKENIZERS = tuple(part.tokenizer for part in ENCODERS)
"""The parts without weights, in the order of the encoders."""
NAMED_ALONE = (LLAMA, T5, CLIP_L, CLIP_G, VAE)
"""The parts that `[models]` names beside a checkpoint, in the order of their flags."""
EVERYTHING = (*PARTS, *TOKENIZERS)
"""The names of all parts."""
