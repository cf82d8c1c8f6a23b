"""Writes the embedded model's parts as ComfyUI's single files, in each of their naming schemes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hidream.formats.detect import read
from hidream.formats.safetensors_file import shards
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded
from hidream.types import Variant

E4M3_MAX = 448.0


def tensors_of(part: str, variant: Variant = Variant.DEV) -> dict[str, Tensor]:
    folder = embedded(variant).part(part)
    return load_file(*shards(folder)) if variant is Variant.DEV else dict(read(folder).tensors)


def config_of(part: str, variant: Variant = Variant.DEV) -> str:
    return (embedded(variant).part(part) / "config.json").read_text()


def write(path: Path, tensors: dict[str, Tensor], config: str = "") -> Path:
    """One file; nano's numbers are not the published ones, so its configuration goes into the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, path, {"config": config} if config else None
    )
    return path


def prefixed(tensors: dict[str, Tensor], prefix: str = "model.diffusion_model.") -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def scaled_fp8(
    tensors: dict[str, Tensor],
    only: str = r"(SelfAttention|DenseReluDense|self_attn|mlp|shared|embed_tokens)\..*weight$",
):
    """As Comfy-Org publishes encoders: matrices e4m3 with a `scale_weight`, a marker, and scales for the inputs."""
    out: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in tensors.items():
        if not re.search(only, key) or "relative_attention_bias" in key:
            out[key] = tensor
            continue
        scale = tensor.float().abs().max() / E4M3_MAX
        out[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        out[key.removesuffix("weight") + "scale_weight"] = scale
        out[key.removesuffix("weight") + "scale_input"] = torch.tensor(1.0)
    return out


def unscaled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What such a file stands for, in float32."""
    return {
        key: tensor.float() * tensors.get(key.removesuffix("weight") + "scale_weight", 1.0)
        for key, tensor in tensors.items()
        if not key.endswith(("scale_weight", "scale_input", "scaled_fp8"))
    }


def open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP in the names of OpenCLIP, with queries, keys and values in one matrix."""
    renames = (
        (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
        (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
        (r"^text_model\.final_layer_norm", "ln_final"),
        (r"^text_model\.encoder\.layers", "transformer.resblocks"),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"self_attn\.out_proj", "attn.out_proj"),
    )
    out: dict[str, Tensor] = {"logit_scale": torch.tensor(4.6)}
    for key, tensor in tensors.items():
        match = re.match(r"(.*)self_attn\.q_proj\.(weight|bias)$", key)
        if match:
            sides = [tensors[f"{match[1]}self_attn.{side}_proj.{match[2]}"] for side in "qkv"]
            key, tensor = f"{match[1]}attn.in_proj_{match[2]}", torch.cat(sides)
        elif re.search(r"self_attn\.[kv]_proj", key):
            continue
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        out["text_projection" if key == "text_projection.weight" else key] = (
            tensor.T if key == "text_projection.weight" else tensor
        )
    return out


def flux_names(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The autoencoder as black-forest-labs publish it: the decoder's levels from below, attention by 1 × 1 kernels."""
    out = {}
    for key, tensor in state.items():
        key = re.sub(r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block", key)
        key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", key)
        key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", key)
        key = key.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
        key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        is_product = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", key)
        out[key] = tensor[:, :, None, None] if is_product else tensor
    return out


def write_comfy(folder: Path, variant: Variant = Variant.DEV) -> Checkpoint:
    """All parts of nano as single files, without a loss; the tokenizers stay where they are."""
    nano = embedded(Variant.DEV).folder
    return Checkpoint(
        folder=write(
            folder / "diffusion_models" / "transformer.safetensors",
            prefixed(tensors_of("transformer", variant)),
            config_of("transformer", variant),
        ),
        clip_l=write(folder / "clip_l.safetensors", tensors_of("text_encoder"), config_of("text_encoder")),
        clip_g=write(
            folder / "clip_g.safetensors", open_clip(tensors_of("text_encoder_2")), config_of("text_encoder_2")
        ),
        t5=write(folder / "t5xxl.safetensors", tensors_of("text_encoder_3"), config_of("text_encoder_3")),
        llama=write(folder / "llama.safetensors", tensors_of("text_encoder_4"), config_of("text_encoder_4")),
        vae=write(folder / "vae.safetensors", tensors_of("vae"), config_of("vae")),
        tokenizers=nano,
    )


def write_comfy_folder(folder: Path, variant: Variant = Variant.DEV) -> Path:
    """All parts of nano as a ComfyUI models folder has them: in its subfolders, without tokenizers."""
    parts = write_comfy(folder, variant)
    for name in ("clip_l", "clip_g", "t5", "llama"):
        file = getattr(parts, name)
        (folder / "text_encoders").mkdir(exist_ok=True)
        file.rename(folder / "text_encoders" / file.name)
    (folder / "vae").mkdir()
    parts.vae.rename(folder / "vae" / parts.vae.name)
    return folder
