"""Start here: from a path to named tensors in any format. The format follows from the content, never from the name.

A path is a folder of safetensors (one file, or shards with an index), a safetensors file, or a GGUF file. `read`
memory-maps it and returns which part of a model it contains, with the tensors under the names of diffusers and
transformers. Otherwise it raises an error that says what the file looks like.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats import comfy
from hidream.formats.bitsandbytes_file import fold
from hidream.formats.comfy_scales import tensors_of_metadata, with_scales
from hidream.formats.difference import is_difference, with_base
from hidream.formats.gguf_file import open_gguf
from hidream.formats.json_object import object_of, read_object, why
from hidream.formats.quantized import StoredTensor
from hidream.formats.regular_file import open_regular
from hidream.formats.safetensors_file import open_safetensors, shards
from hidream.parts import Kind

GGUF_MAGIC = b"GGUF"
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02")
NAMES_SHOWN = 3
NAME_MAX_CHARS = 100


@dataclass(frozen=True, slots=True)
class Published:
    """One part, as its files hold it."""

    path: Path
    kind: Kind
    tensors: dict[str, StoredTensor]  # views of the mapped files, but for sums of differences (`difference.py`)


def read(path: Path, accepted: Iterable[Kind] = tuple(Kind), *, values: bool = True) -> Published:
    """Open a folder or a file. Raises CheckpointError when it cannot be read or holds something else.

    Without `values` a difference is not added to its base, which takes time: only names, shapes and types are right.
    """
    return _published(path, with_scales(comfy.without_prefix(_open(path, values=values)), str(path)), tuple(accepted))


def read_shapes(path: Path) -> Published:
    """Open a folder or a file as `read` does, but only for names and shapes: scales are neither read nor checked."""
    return _published(path, comfy.without_prefix(_open(path, values=False)), tuple(Kind))


def files_of(path: Path) -> list[Path]:
    """The files of weights that a path means. Raises CheckpointError if there is none."""
    if not path.is_dir():
        return [path]
    ggufs = sorted(path.glob("*.gguf"))
    return ggufs if len(ggufs) == 1 and not any(path.glob("*.safetensors*")) else shards(path)


def config_of(path: Path) -> dict[str, Any] | None:
    """A part's own configuration, as the JSON of diffusers or transformers; None if it has none.

    In a folder that is `config.json`, else a file's metadata (`config`). A single file may have it there, or beside it.
    """
    if path.is_dir() and (path / "config.json").is_file():
        return read_json(path / "config.json")
    stated = metadata_object("config", path)
    beside = path.parent / "config.json"
    if stated is not None or path.is_dir() or not beside.is_file():
        return stated
    return read_json(beside)


def metadata_object(key: str, path: Path) -> dict[str, Any] | None:
    """The JSON object that the metadata of a file, or of a folder's first one, has under a key; None without it."""
    stated = _metadata(files_of(path)[0]).get(key)
    try:
        return None if stated is None else object_of(stated)
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata `{key}` is not a JSON object: {why(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object beside weights. Raises CheckpointError when it cannot be read."""
    return read_object(path, "a configuration as published")


def class_in(config: Mapping[str, Any]) -> str:
    """The class of diffusers or transformers that a configuration names; empty where it names none."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return str(config.get("_class_name") or first)[:NAME_MAX_CHARS]


def kind_of(names: Iterable[str]) -> Kind | None:
    """The kind of part that tensors of these names make up; None if it is no part of HiDream-I1."""
    starts = tuple(names)
    for kind, marks in MARKS.items():
        if any(name.startswith(marks) for name in starts) and not any(name.endswith(ADAPTER) for name in starts):
            return kind
    return None


def description_of(names: Iterable[str]) -> str:
    """Describe what a file with other names seems to be."""
    names = sorted(names)
    for mark, what in FOREIGN:
        if any(mark in name for name in names):
            return what
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"unknown tensors ({shown}{', …' * (len(names) > NAMES_SHOWN)})" if names else "no tensors"


MARKS: dict[Kind, tuple[str, ...]] = {
    Kind.TRANSFORMER: ("double_stream_blocks.", "caption_projection.0."),
    Kind.CLIP: ("text_model.encoder.layers.", "transformer.resblocks."),
    Kind.T5: ("encoder.block.0.layer.0.SelfAttention.",),
    Kind.LLAMA: ("model.layers.0.self_attn.", "layers.0.self_attn."),
    Kind.VAE: ("decoder.conv_in.", "decoder.up_blocks.", "decoder.up."),
}
"""How the names of each kind begin."""

NAMES: dict[Kind, Callable[[Mapping[str, StoredTensor]], dict[str, StoredTensor]]] = {
    Kind.TRANSFORMER: dict,
    Kind.CLIP: comfy.clip_names,
    Kind.T5: comfy.t5_names,
    Kind.LLAMA: comfy.llama_names,
    Kind.VAE: comfy.autoencoder_names,
}

ADAPTER = (
    *(".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight"),
    *(".lokr_w1", ".lokr_w1_a", ".hada_w1_a"),
)
FOREIGN = (
    *((mark, "a LoRA, which a request names and which is no part of a model") for mark in ADAPTER),
    ("vae.decoder.", "a checkpoint of several parts, which must be given one by one"),
    ("first_stage_model.", "a checkpoint of several parts, which must be given one by one"),
    ("distilled_guidance_layer.", "a Chroma transformer"),
    ("double_blocks.0.img_attn.", "a FLUX or HunyuanVideo transformer"),
    ("single_transformer_blocks.", "a FLUX transformer"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer"),
    ("add_embedding.linear_1.", "a Stable Diffusion XL UNet"),
    ("label_emb.", "a Stable Diffusion XL UNet"),
    ("input_blocks.", "a Stable Diffusion UNet"),
    ("down_blocks.0.attentions.", "a Stable Diffusion UNet"),
    ("blocks.0.cross_attn.", "a Wan transformer"),
    ("cap_embedder.", "a Lumina transformer"),
    ("transformer_blocks.0.attn.add_q_proj.", "another model's transformer (Qwen-Image, Stable Diffusion 3)"),
    ("transformer_blocks.", "another model's transformer"),
    ("visual.", "a vision-language model"),
    ("blk.0.", "a language model with llama.cpp's names"),
)
"""Part of a name, and what has it; the first match counts."""


def _published(path: Path, tensors: Mapping[str, StoredTensor], accepted: tuple[Kind, ...]) -> Published:
    kind = kind_of(tensors)
    if kind is None or kind not in accepted:
        found = kind or description_of(tensors)
        raise CheckpointError(f"{path} holds {found}; accepted: {' or '.join(accepted)}")
    empty = next((name for name, tensor in tensors.items() if not tensor.shape.numel()), None)
    if empty is not None:
        raise CheckpointError(
            f"{path} has {empty} {list(tensors[empty].shape)}, which is empty; accepted: a complete file"
        )
    try:
        return Published(path, kind, NAMES[kind](tensors))
    except (ValueError, RuntimeError, IndexError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} has the tensor names of {kind}, but not its shapes; accepted: a complete file"
        ) from error


def _open(path: Path, *, values: bool) -> dict[str, StoredTensor]:
    if not os.path.exists(path):  # noqa: PTH110 - unlike Path's it answers where it may not look
        raise CheckpointError(f"{path} does not exist; accepted: a folder, a .safetensors or a .gguf file")
    if not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{path} is neither a file nor a folder; accepted: a .safetensors or a .gguf file")
    files = files_of(path)
    if len(files) == 1 and _magic(files[0]) == GGUF_MAGIC:
        return dict(open_gguf(files[0]).tensors)
    tensors: dict[str, Tensor] = {}
    for file in files:
        if _magic(file).startswith(PICKLE_MAGIC):
            raise CheckpointError(f"{file} is a PyTorch pickle, which may run programs; accepted: safetensors, GGUF")
        metadata, found = open_safetensors(file)
        if is_difference(metadata):
            found = with_base(metadata, found, file, values=values)
        found |= tensors_of_metadata(metadata, str(file))
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise CheckpointError(
                f"{path}: {len(twice)} keys are in {file.name} and in another file too "
                f"({', '.join(twice[:NAMES_SHOWN])}); accepted: the files of one model, in one type"
            )
        tensors |= found
    return fold(tensors)


def _magic(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            return stream.read(4)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {why(error)}; accepted: a readable file") from error


def _metadata(file: Path) -> Mapping[str, Any]:
    return open_gguf(file).metadata if _magic(file) == GGUF_MAGIC else open_safetensors(file)[0]
