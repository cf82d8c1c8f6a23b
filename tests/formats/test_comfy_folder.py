"""Finding parts in a ComfyUI models folder by their headers: files of the published shapes without data."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from hidream.errors import CheckpointError
from hidream.formats.comfy_folder import encoders_and_vae, parts_in, root_of
from hidream.parts import PARTS
from hidream.types import Variant

TRANSFORMER = {
    "double_stream_blocks.0.block.attn1.to_q.weight": [2560, 2560],
    "caption_projection.0.linear.weight": [2560, 4096],
    "caption_projection.48.linear.weight": [2560, 4096],
    "p_embedder.pooled_embedder.linear_1.weight": [2560, 2048],
    "final_layer.linear.weight": [64, 2560],
}
BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
T5 = {"shared.weight": [32128, 4096], BIAS.format(0): [32, 64]}
AUTOENCODER = {"decoder.conv_in.weight": [512, 16, 3, 3], "decoder.up.0.block.0.conv1.weight": [128, 128, 3, 3]}


def clip(width, positions=248):
    return {
        "text_model.embeddings.position_embedding.weight": [positions, width],
        "text_model.encoder.layers.0.mlp.fc1.weight": [4 * width, width],
    }


def llama(vocabulary, width=4096):
    return {
        "model.embed_tokens.weight": [vocabulary, width],
        "model.layers.0.self_attn.q_proj.weight": [4096, width],
    }


PUBLISHED = {
    "transformer": ("diffusion_models/hidream_i1_dev_fp8.safetensors", TRANSFORMER),
    "text_encoder": ("text_encoders/clip_l_hidream.safetensors", clip(768)),
    "text_encoder_2": ("text_encoders/clip_g_hidream.safetensors", clip(1280, 218)),
    "text_encoder_3": ("text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors", T5),
    "text_encoder_4": ("text_encoders/llama_3.1_8b_instruct_fp8_scaled.safetensors", llama(128256)),
    "vae": ("vae/ae.safetensors", AUTOENCODER),
}
FOREIGN = {
    "diffusion_models/flux1-dev.safetensors": {"double_blocks.0.img_attn.qkv.weight": [9216, 3072]},
    "diffusion_models/hidream_e1_full_bf16.safetensors": TRANSFORMER,
    "diffusion_models/ltxv.safetensors": {"caption_projection.linear_1.weight": [2048, 4096]},
    "text_encoders/clip_l.safetensors": clip(768, 77),
    "text_encoders/clip_g.safetensors": clip(1280, 77),
    "clip/umt5_xxl_fp8_e4m3fn_scaled.safetensors": T5 | {"shared.weight": [256384, 4096], BIAS.format(1): [32, 64]},
    "text_encoders/t5_base.safetensors": T5 | {"shared.weight": [32128, 768]},
    "text_encoders/llava_llama3_fp8_scaled.safetensors": llama(128320),
    "text_encoders/qwen_3_4b.safetensors": llama(151936, 2560),
    "text_encoders/encoder of nobody.safetensors": {"a.weight": [2, 2]},
    "vae/sdxl_vae.safetensors": AUTOENCODER | {"decoder.conv_in.weight": [512, 4, 3, 3]},
    "vae/wan_2.1_vae.safetensors": AUTOENCODER | {"decoder.conv_in.weight": [512, 16, 3, 3, 3]},
}


def hollow(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A safetensors file of full size with a header and no data: a hole, which takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    return path


def published(root: Path, *without: str) -> dict[str, Path]:
    return {part: hollow(root / name, shapes) for part, (name, shapes) in PUBLISHED.items() if part not in without}


@pytest.mark.parametrize("inside", ["", "split_files", "models"])
@pytest.mark.parametrize("foreign", [False, True])
def test_every_part_is_found_among_others(tmp_path, inside, foreign):
    wanted = published(tmp_path / inside)
    if foreign:
        for name, shapes in FOREIGN.items():
            hollow(tmp_path / inside / name, shapes)
        (tmp_path / inside / "vae" / "torn.safetensors").write_bytes(b"no header")
        (tmp_path / inside / "vae" / "old.ckpt").write_bytes(b"PK\x03\x04")
        (tmp_path / inside / "text_encoders" / "folder.safetensors").mkdir()
    assert parts_in(tmp_path, Variant.DEV, {}) == wanted
    assert parts_in(wanted["transformer"], Variant.DEV, {}) == wanted  # around a file that is named itself


def test_older_folders_and_folders_within_are_looked_into(tmp_path):
    for part, (name, shapes) in PUBLISHED.items():
        older = {"diffusion_models": "unet/hidream/new", "text_encoders": "clip/hidream", "vae": "vae/flux"}
        kind, file = name.split("/")
        hollow(tmp_path / older[kind] / file, shapes)
        assert PARTS[part].comfy_folders
    assert parts_in(tmp_path, Variant.DEV, {}).keys() == PUBLISHED.keys()


def test_other_layouts_are_left_alone(tmp_path):
    assert root_of(tmp_path) is None
    (tmp_path / "vae").mkdir()
    assert parts_in(tmp_path, Variant.DEV, {}) == {}
    published(tmp_path)
    assert root_of(tmp_path) == tmp_path
    (tmp_path / "transformer").mkdir()
    assert root_of(tmp_path) is None  # of diffusers
    assert parts_in(hollow(tmp_path / "elsewhere" / "a.safetensors", TRANSFORMER), Variant.DEV, {}) == {}
    assert parts_in(tmp_path / "nowhere", Variant.DEV, {}) == {}


@pytest.mark.parametrize("variant", Variant)
def test_the_transformer_is_the_variants_by_its_name(tmp_path, variant):
    published(tmp_path, "transformer")
    files = {
        Variant.DEV: hollow(tmp_path / "diffusion_models" / "hidream_i1_dev_bf16.safetensors", TRANSFORMER),
        Variant.FULL: hollow(tmp_path / "diffusion_models" / "hidream_i1_full_fp16.safetensors", TRANSFORMER),
        Variant.FAST: hollow(tmp_path / "unet" / "HiDream-I1-Fast.safetensors", TRANSFORMER),
    }
    assert parts_in(tmp_path, variant, {})["transformer"] == files[variant]
    with pytest.raises(
        CheckpointError, match=r"3 files for the transformer: .*bf16.*fp16.*Fast.*; accepted: one, named"
    ):
        parts_in(tmp_path, None, {})
    files[variant].unlink()
    with pytest.raises(CheckpointError, match=rf"no transformer of {variant} in diffusion_models/ or unet/; ignored: "):
        parts_in(tmp_path, variant, {})
    only = hollow(tmp_path / "unet" / "mine.safetensors", TRANSFORMER)
    assert parts_in(tmp_path, variant, {})["transformer"] == only


def test_two_files_for_one_part_are_named_with_the_flag_that_chooses(tmp_path):
    wanted = published(tmp_path)
    hollow(tmp_path / "diffusion_models" / "hidream_i1_dev_bf16.safetensors", TRANSFORMER)
    names = r"diffusion_models/hidream_i1_dev_bf16.safetensors, diffusion_models/hidream_i1_dev_fp8.safetensors"
    with pytest.raises(
        CheckpointError, match=rf"has 2 files for the transformer of dev: {names}; .* named with --model"
    ):
        parts_in(tmp_path, Variant.DEV, {})
    assert parts_in(wanted["transformer"], Variant.DEV, {}) == wanted

    second = hollow(tmp_path / "clip" / "t5xxl_fp16.safetensors", T5)
    with pytest.raises(CheckpointError, match=r"2 files for the text_encoder_3: clip/t5xxl_fp16.*; .* named with --t5"):
        parts_in(wanted["transformer"], Variant.DEV, {})
    others = {part: path for part, path in wanted.items() if part != "text_encoder_3"}
    assert parts_in(wanted["transformer"], Variant.DEV, {"text_encoder_3": second}) == others


@pytest.mark.parametrize("part", PUBLISHED)
def test_what_is_missing_is_named_with_what_was_passed_over(tmp_path, part):
    published(tmp_path, part)
    for name, shapes in FOREIGN.items():
        hollow(tmp_path / name, shapes)
    with pytest.raises(CheckpointError, match=rf"has no {part}( of dev)? in .*/; ignored: .*\); accepted: ") as raised:
        parts_in(tmp_path, Variant.DEV, {})
    for expected in {
        "transformer": ("hidream_e1_full_bf16.safetensors (HiDream-E1, by its name)", "it holds a FLUX"),
        "text_encoder": ("clip_l.safetensors (a CLIP text encoder, but not HiDream-I1's)",),
        "vae": ("sdxl_vae.safetensors (an autoencoder, but not HiDream-I1's)",),
    }.get(part, ("(a Llama, but not HiDream-I1's)", "umt5_xxl_fp8_e4m3fn_scaled.safetensors (a T5 encoder, but")):
        assert expected in raised.value.message


def test_tokenizers_come_along_where_there_are_some(tmp_path):
    published(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    assert parts_in(tmp_path, Variant.DEV, {})["tokenizers"] == tmp_path
    (tmp_path / "tokenizers" / "tokenizer").mkdir(parents=True)
    assert parts_in(tmp_path, Variant.DEV, {})["tokenizers"] == tmp_path / "tokenizers"


def test_a_file_that_links_lead_to_twice_is_one_file(tmp_path):
    wanted = published(tmp_path)
    (tmp_path / "clip").symlink_to(tmp_path / "text_encoders")
    (tmp_path / "unet").symlink_to(tmp_path / "diffusion_models")
    (tmp_path / "vae" / "again").symlink_to(tmp_path / "vae")
    (tmp_path / "vae" / "vae.safetensors").symlink_to(wanted["vae"])
    found = parts_in(tmp_path, Variant.DEV, {})
    assert {part: path.resolve() for part, path in found.items()} == wanted


def test_parts_are_found_among_files_of_any_folders(tmp_path):
    """ComfyUI's extra_model_paths.yaml names further folders, in any layout."""
    wanted = published(tmp_path / "elsewhere")
    others = [hollow(tmp_path / "here" / name, shapes) for name, shapes in FOREIGN.items()]
    (tmp_path / "here" / "torn.safetensors").write_bytes(b"no header")
    files = [*others, tmp_path / "here" / "torn.safetensors", *wanted.values()]
    transformer = wanted.pop("transformer")
    assert encoders_and_vae(files, transformer) == {part: [file] for part, file in wanted.items()}
    with pytest.raises(CheckpointError, match="is not a complete HiDream-I1 transformer"):
        encoders_and_vae([], wanted["vae"])
