"""One text encoder or tokenizer from published files, through the classes of `transformers`.

They come from a folder with a configuration, or from a single file whose numbers `inferred.py` infers. Knows no
prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hidream.errors import CheckpointError
from hidream.formats.detect import Published
from hidream.model.checkpoint.assign import Target, assign, resolve_stored
from hidream.model.checkpoint.checkpoint import LLAMA_HELP, TOKENIZER_HELP, Checkpoint
from hidream.model.checkpoint.inferred import Shapes, clip_config, llama_config, t5_config
from hidream.model.network.config import TransformerConfig
from hidream.parts import CLIP_G, CLIP_L, LLAMA, PARTS, T5, Kind
from hidream.types import WeightFormat

CLASSES: dict[Kind, tuple[Any, Any, Callable[[Shapes], dict[str, Any]]]] = {
    Kind.CLIP: (transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig, clip_config),
    Kind.T5: (transformers.T5EncoderModel, transformers.T5Config, t5_config),
    Kind.LLAMA: (transformers.LlamaModel, transformers.LlamaConfig, llama_config),
}
"""Class, class of its configuration, and where that comes from when no file states it."""

IGNORED_KEYS = (
    *("attn_implementation", "experts_implementation", "auto_map", "quantization_config", "per_layer_config"),
    *("return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "torchscript"),
)
"""Of a configuration what says how to run it, in part by code that would be downloaded: that is settled here."""
FILES_SHOWN = 5
LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers")
"""The numbers of a configuration for each of which there are tensors."""
CONFIG_NUMBER_MAX = 2**31
CONFIG_LIST_MAX = 4096


def load_encoder(
    checkpoint: Checkpoint, name: str, device: torch.device, dtype: torch.dtype, storage: WeightFormat | None = None
) -> Any:  # noqa: ANN401 - transformers is untyped here
    """Load one part, "text_encoder" to "text_encoder_4", computing in `dtype`; Llama without its language head.

    For `storage` see `checkpoint.load_transformer`. Raises CheckpointError when it is missing or does not fit.
    """
    encoder, published = open_encoder(checkpoint, name)
    # T5's second products leave the range of float16 (transformers: T5PreTrainedModel._keep_in_fp32_modules)
    precise = (".wo",) if dtype is torch.float16 and name == T5.name else ()
    storage = resolve_stored(storage, published.tensors)
    assign(encoder, published.tensors, Target(device, dtype, storage, float32=precise), published.path)
    _make_buffers(encoder, device)
    return encoder.eval().requires_grad_(False)


def open_encoder(checkpoint: Checkpoint, name: str) -> tuple[Any, Published]:
    """Build one encoder on the meta device, and open its files."""
    kind, config_kind, infer = CLASSES[PARTS[name].kind]
    stated = checkpoint.config(name)
    published = checkpoint.read(name)
    values = stated or infer({key: tensor.shape for key, tensor in published.tensors.items()})
    values = {key: value for key, value in values.items() if key not in IGNORED_KEYS and not key.startswith("_")}
    check_numbers(values, len(published.tensors), published.path)
    _check_width(name, values, published.path)
    try:
        with torch.device("meta"):
            return kind(config_kind.from_dict(values)), published
    except Exception as error:  # nothing narrower: the library asserts, divides, looks up what a stranger wrote
        raise CheckpointError(f"the configuration of {published.path} cannot be used: {_why(error)}") from error


def load_tokenizer(checkpoint: Checkpoint, name: str) -> Any:  # noqa: ANN401
    """Load one part, "tokenizer" to "tokenizer_4". Raises CheckpointError when it is missing or cannot be read."""
    folder = checkpoint.part(name)
    try:
        odd = [file.name for file in folder.iterdir() if not file.is_file() and not file.is_dir()]
        if odd:  # the reading of a pipe might never end
            raise ValueError(f"{odd[0]!r:.100} is not a file")
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # nothing narrower: the package tokenizers raises just this, and panics as the other
        files = sorted(file.name for file in folder.glob("*"))[:FILES_SHOWN]
        help_text = LLAMA_HELP if name == LLAMA.tokenizer else TOKENIZER_HELP
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be loaded: damaged or incomplete ({', '.join(files) or 'empty'}); "
            f"accepted: tokenizer.json and tokenizer_config.json as published. {help_text}"
        ) from error


def check_fit(encoders: Sequence[Any], config: TransformerConfig) -> None:
    """Raise CheckpointError when the four encoders' answers are not what the transformer was trained on."""
    clip_l, clip_g, t5, llama = (encoder.config for encoder in encoders)
    widths = [
        ("both CLIPs together", clip_l.projection_dim + clip_g.projection_dim, config.text_emb_dim),
        ("T5", t5.d_model, config.caption_channels[0]),
        ("Llama", llama.hidden_size, config.caption_channels[1]),
    ]
    for name, width, wanted in widths:
        if width != wanted:
            raise CheckpointError(f"{name} has {width} channels; accepted by this transformer: {wanted}")
    layers = max(config.llama_layers) + 1
    if llama.num_hidden_layers != layers:
        raise CheckpointError(f"Llama has {llama.num_hidden_layers} layers; accepted by this transformer: {layers}")


def check_numbers(config: Mapping[str, Any], tensors: int, path: Path) -> None:
    """Raise CheckpointError on numbers that no model of so many tensors has, before anything is made of them."""
    for key, value in config.items():
        numbers = list(_numbers(value))
        most = max((abs(number) for number in numbers), default=0)
        layers = sum(numbers) if key in LAYERS or "layers_per_block" in key else 0
        if most > CONFIG_NUMBER_MAX or layers > tensors or len(numbers) > CONFIG_LIST_MAX:
            raise CheckpointError(
                f"the configuration of {path} cannot be used: it has {key:.100} = {value!r:.100}; accepted: numbers of "
                f"a model of {tensors:,} tensors"
            )


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)


def _why(error: Exception) -> str:
    """What a configuration lacks: transformers names the field in the cause of its error, or the word it looked for."""
    message = str(error.__cause__ or error).partition("\n")[0].partition(" doesn't match")[0]
    if message.startswith("Field") or isinstance(error.__cause__ or error, ValueError):
        return f"{message:.200}"
    return f"{error.args[0]!r} is not known" if isinstance(error, KeyError) else "its numbers do not fit together"


def _check_width(name: str, config: dict[str, Any], path: Path) -> None:
    """Refuse CLIP-L in CLIP-G's place and vice versa, which are easily mistaken; other widths are a small model's."""
    expected = PARTS[name]
    found = next((clip for clip in (CLIP_L, CLIP_G) if clip.width == config.get("hidden_size")), None)
    if expected.kind is Kind.CLIP and found not in (None, expected):
        raise CheckpointError(
            f"{path} is {found.title}, {found.width} wide; "
            f"accepted as {name!r}: {expected.title}, {expected.width} wide"
        )


def _make_buffers(encoder: nn.Module, device: torch.device) -> None:
    """Compute what no file holds: Llama's rotary frequencies and CLIP's positions."""
    if isinstance(encoder, transformers.LlamaModel):
        encoder.rotary_emb = LlamaRotaryEmbedding(config=encoder.config).to(device)
    if isinstance(encoder, transformers.CLIPTextModelWithProjection):
        embeddings = encoder.text_model.embeddings
        positions = torch.arange(encoder.config.max_position_embeddings, device=device)[None]
        embeddings.register_buffer("position_ids", positions, persistent=False)
    left = [name for name, buffer in encoder.named_buffers() if buffer.is_meta]
    assert not left, f"buffers without values: {left}"
