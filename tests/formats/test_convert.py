"""Nano converted between all formats and back, read by diffusers, transformers and gguf."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from diffusers import GGUFQuantizationConfig, HiDreamImagePipeline, HiDreamImageTransformer2DModel
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import comfy_files
from hidream import cli
from hidream.errors import CheckpointError, ConfigurationError
from hidream.formats import convert as conversion
from hidream.formats.detect import config_of, read
from hidream.formats.gguf_file import write_gguf
from hidream.formats.quantized import GGUF_WRITABLE, Quantized
from hidream.formats.retype import is_matrix
from hidream.formats.safetensors_file import shards
from hidream.formats.targets import ConversionOptions, Format
from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.checkpoint.inferred import published_config
from hidream.types import Variant

NANO = embedded(Variant.DEV).folder
TRANSFORMER = NANO / "transformer"
SHARDS = math.ceil((TRANSFORMER / "diffusion_pytorch_model.safetensors").stat().st_size / 5e6)
"""Into how many files of 5 MB it goes."""
TO_Q = "double_stream_blocks.0.block.attn1.to_q.weight"
W2 = "double_stream_blocks.0.block.ff_t.w2.weight"  # in rows of 512, of which every type is made
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")


def convert(source, target, requested=None, **values):
    to = values.pop("to", None) or conversion.format_of(target)
    return conversion.convert(
        source, target, ConversionOptions(to, requested, **values), published_config, lambda *_: None
    )


def dense(value):
    return value.dense(torch.float32) if isinstance(value, Quantized) else value.float()


def assert_equal(path, other, dtype=None):
    ours, theirs = read(path).tensors, read(other).tensors
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert dtype is None or value.dtype is dtype, name
        assert torch.equal(dense(value), dense(theirs[name])), name


@pytest.mark.parametrize("part", PARTS)
def test_every_part_goes_to_comfy_and_back_to_the_last_bit(tmp_path, part):
    file, folder = tmp_path / "part.safetensors", tmp_path / part
    assert convert(NANO / part, file) == [file]
    assert_equal(file, NANO / part, torch.float16)
    assert config_of(file) == config_of(NANO / part)
    convert(file, folder)
    assert_equal(folder, NANO / part, torch.float16)
    assert config_of(folder) == config_of(NANO / part)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, part])


@pytest.mark.parametrize(
    "kind", ["bf16", "Q8_0", *(pytest.param(k, marks=pytest.mark.long) for k in ("F16", "fp32", *GGUF_WRITABLE))]
)
def test_gguf_is_read_by_the_package(tmp_path, kind):
    convert(TRANSFORMER, tmp_path / "a.gguf", kind.lower())
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["general.architecture"].contents() == "hidream"
    exact = read(TRANSFORMER).tensors
    assert {tensor.name for tensor in reader.tensors} == exact.keys()
    wanted = {"bf16": "BF16", "fp32": "F32"}.get(kind, kind)
    tensor = next(tensor for tensor in reader.tensors if tensor.name == W2)
    assert tensor.tensor_type.name == wanted
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    packed = gguf.quantize(exact[W2].float().numpy(), gguf.GGMLQuantizationType[wanted])
    assert (values == gguf.dequantize(packed, gguf.GGMLQuantizationType[wanted])).all()
    assert config_of(tmp_path / "a.gguf") == config_of(TRANSFORMER)


def test_gguf_keeps_the_stored_type_and_comes_back(tmp_path):
    convert(TRANSFORMER, tmp_path / "a.gguf")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert types[TO_Q] == "F16"
    convert(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert_equal(tmp_path / "b.gguf", TRANSFORMER)
    convert(tmp_path / "b.gguf", tmp_path / "back", "fp16")
    assert_equal(tmp_path / "back", TRANSFORMER, torch.float16)
    assert config_of(tmp_path / "back") == config_of(TRANSFORMER)


def test_a_quantised_source_becomes_plain(tmp_path):
    convert(TRANSFORMER, tmp_path / "q.gguf", "Q8_0")
    convert(tmp_path / "q.gguf", tmp_path / "plain.safetensors")
    quantised = read(tmp_path / "q.gguf").tensors
    plain = load_file(tmp_path / "plain.safetensors")
    assert isinstance(quantised[TO_Q], Quantized)
    assert torch.equal(plain[TO_Q], quantised[TO_Q].dense(torch.bfloat16))


def test_k_quants_can_be_read_but_not_written(tmp_path):
    blocks = torch.randint(0, 100, (24, 2 * 210), dtype=torch.uint8)  # Q6_K: 256 values in 210 bytes
    value = Quantized("Q6_K", {"data": blocks}, torch.Size([24, 512]))
    with pytest.raises(ConfigurationError, match="'Q6_K'"):
        write_gguf(tmp_path / "a.gguf", {"a": value}, "Q6_K")
    with pytest.raises(ConfigurationError, match=r"gguf files .* 'Q6_K' .*K- and IQ-types.*; accepted: bf16.*Q8_0"):
        convert(TRANSFORMER, tmp_path / "a.gguf", "Q6_K")
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "hidream")
    for name in ("caption_projection.0.linear.weight", TO_Q):
        writer.add_tensor(name, blocks.numpy(), raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ConfigurationError, match=r"is in Q6_K, a type that gguf files cannot be written in; accepted: bf16"
    ):
        convert(tmp_path / "k.gguf", tmp_path / "again.gguf")
    convert(tmp_path / "k.gguf", tmp_path / "plain.safetensors", "fp32")
    expected = gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.Q6_K)
    assert (load_file(tmp_path / "plain.safetensors")[TO_Q].numpy() == expected).all()


def test_diffusers_takes_our_shards_our_comfy_file_and_our_gguf(tmp_path):
    convert(TRANSFORMER, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "folder", shard_bytes=5 * 10**6)
    convert(TRANSFORMER, tmp_path / "q.gguf", "Q8_0")
    assert len(shards(tmp_path / "folder")) == SHARDS
    assert all(file.stat().st_size < 5.1e6 for file in shards(tmp_path / "folder"))

    kind, half = HiDreamImageTransformer2DModel, torch.float16
    expected = kind.from_pretrained(TRANSFORMER, dtype=half).state_dict()
    sharded = kind.from_pretrained(tmp_path / "folder", dtype=half).state_dict()
    single = kind.from_single_file(tmp_path / "a.safetensors", config=str(TRANSFORMER), dtype=half).state_dict()
    assert sharded.keys() == single.keys() == expected.keys()
    assert all(torch.equal(sharded[name], expected[name]) for name in expected)
    assert all(torch.equal(single[name], expected[name]) for name in expected)

    quantised = kind.from_single_file(
        str(tmp_path / "q.gguf"),
        config=str(TRANSFORMER),
        quantization_config=GGUFQuantizationConfig(compute_dtype=half),
        dtype=half,
    )
    theirs = dequantize_gguf_tensor(quantised.double_stream_blocks[0].block.attn1.to_q.weight)
    ours = read(tmp_path / "q.gguf").tensors[TO_Q]
    assert torch.equal(theirs.float(), ours.dense(torch.float16).float())


def test_transformers_takes_our_encoders(tmp_path):
    classes = {
        "text_encoder": transformers.CLIPTextModelWithProjection,
        "text_encoder_3": transformers.T5EncoderModel,
        "text_encoder_4": transformers.LlamaModel,
    }
    for part, kind in classes.items():
        convert(NANO / part, tmp_path / f"{part}.safetensors")
        convert(tmp_path / f"{part}.safetensors", tmp_path / part, "bf16", shard_bytes=5 * 10**5)
        ours, info = kind.from_pretrained(tmp_path / part, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert ours.dtype is torch.bfloat16  # as its config.json says
        expected = kind.from_pretrained(NANO / part).state_dict()
        assert all(torch.equal(tensor, expected[name].bfloat16()) for name, tensor in ours.state_dict().items())


def test_a_whole_folder_of_diffusers(tmp_path):
    written = convert(NANO, tmp_path / "model", "bf16", shard_bytes=10**7)
    assert [path.name for path in written] == [
        "transformer",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "text_encoder_4",
        "vae",
    ]
    pipeline = HiDreamImagePipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    expected = read(TRANSFORMER).tensors
    assert all(torch.equal(t, expected[name].bfloat16()) for name, t in pipeline.transformer.state_dict().items())
    assert pipeline.tokenizer_4("a fox") == transformers.AutoTokenizer.from_pretrained(NANO / "tokenizer_4")("a fox")


@pytest.mark.parametrize("name", ["a.gguf", "a.safetensors"])
def test_a_whole_folder_does_not_go_into_a_file(tmp_path, name):
    with pytest.raises(ConfigurationError, match=f"is a whole model; accepted: one part of it, or .* of .*{name}"):
        convert(NANO, tmp_path / name)


def test_a_folder_that_one_stands_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert convert(NANO / "text_encoder", Path()) == [tmp_path / "here"]
    assert_equal(tmp_path / "here", NANO / "text_encoder")


def test_a_whole_folder_becomes_comfys_files(tmp_path):
    written = convert(NANO, tmp_path, "fp8_scaled", to=Format.COMFY)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "diffusion_models/dev.safetensors",
        "text_encoders/clip_l_hidream.safetensors",
        "text_encoders/clip_g_hidream.safetensors",
        "text_encoders/t5xxl.safetensors",
        "text_encoders/llama_3.1_8b_instruct.safetensors",
        "vae/ae.safetensors",
    ]
    keys = [load_file(path).keys() for path in written]
    assert ["scaled_fp8" in names for names in keys] == [True, False, False, True, True, False]
    with pytest.raises(ConfigurationError, match=r"dev.safetensors exists; accepted: a new path, or --force"):
        convert(NANO, tmp_path, "fp8_scaled", to=Format.COMFY)


def test_a_whole_folder_with_a_gguf_transformer(tmp_path):
    convert(NANO, tmp_path / "model", "Q8_0", to=Format.GGUF)
    checkpoint = embedded(Variant.DEV).__class__(tmp_path / "model")
    assert len(checkpoint.weight_files()) == 6
    assert checkpoint.config("transformer") == config_of(TRANSFORMER)
    assert isinstance(checkpoint.read("transformer").tensors[TO_Q], Quantized)
    assert (tmp_path / "model" / "model_index.json").read_bytes() == (NANO / "model_index.json").read_bytes()
    for part in PARTS[1:]:
        assert_equal(tmp_path / "model" / part, NANO / part, torch.float16)


@pytest.mark.parametrize("part", ["transformer", "text_encoder_3", "text_encoder_4"])
def test_scaled_fp8_comes_back_within_its_error_and_then_stays(tmp_path, part):
    convert(NANO / part, tmp_path / "a.safetensors", "fp8_scaled")
    file = load_file(tmp_path / "a.safetensors")
    scales = {name for name in file if name.endswith(".scale_weight")}
    matrices = {name for name, tensor in file.items() if tensor.dtype is torch.float8_e4m3fn} - {"scaled_fp8"}
    assert len(scales) > 10
    assert {name.removesuffix("scale_weight") + "weight" for name in scales} == matrices
    published, exact = read(tmp_path / "a.safetensors"), read(NANO / part).tensors
    for name, value in published.tensors.items():
        if is_matrix(name, value.shape, published.kind):
            error = (dense(value) - exact[name].float()).norm() / exact[name].float().norm()
            assert 0.01 < error < 0.04, name  # three bits: 2^-4 / sqrt(3) at most, of each value
        else:
            assert torch.equal(value, exact[name])
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_plain_fp8_has_no_scales(tmp_path):
    convert(TRANSFORMER, tmp_path / "a.safetensors", "fp8")
    file, exact = load_file(tmp_path / "a.safetensors"), read(TRANSFORMER).tensors
    assert file.keys() == exact.keys()
    assert torch.equal(file[TO_Q].float(), exact[TO_Q].to(torch.float8_e4m3fn).float())
    convert(tmp_path / "a.safetensors", tmp_path / "folder")
    assert torch.equal(read(tmp_path / "folder").tensors[TO_Q].float(), file[TO_Q].float())


@pytest.mark.parametrize("case", ["plain", "double"])
def test_bitsandbytes_weights_become_what_its_own_package_makes_of_them(tmp_path, case):
    recorded = load_file(Path(__file__).parent / "fixtures" / "bitsandbytes.safetensors")
    weight = {name: tensor for name, tensor in recorded.items() if name.startswith(f"{case}.weight")}
    save_file({TO_Q + name.removeprefix(f"{case}.weight"): t for name, t in weight.items()}, tmp_path / "nf4")
    for name, requested in (("a.safetensors", "fp32"), ("a.gguf", "fp32")):
        convert(tmp_path / "nf4", tmp_path / name, requested)
        assert relative(read(tmp_path / name).tensors[TO_Q], recorded[f"{case}.dequantized"]) < 2**-8


def relative(ours, theirs):
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def test_how_it_was_quantised_does_not_stay_in_the_configuration(tmp_path):
    stated = {**config_of(TRANSFORMER), "quantization_config": {"quant_method": "bitsandbytes"}}
    comfy_files.write(tmp_path / "a.safetensors", comfy_files.tensors_of("transformer"), json.dumps(stated))
    convert(tmp_path / "a.safetensors", tmp_path / "folder")
    assert config_of(tmp_path / "folder") == config_of(TRANSFORMER)


def test_the_configuration_of_published_sizes_is_known(tmp_path):
    """Files without any: a CLIP-L of one layer; and nano's transformer, whose heads nobody can know."""
    config = transformers.CLIPTextConfig(num_hidden_layers=1, hidden_size=768, projection_dim=768, vocab_size=500)
    clip = transformers.CLIPTextModelWithProjection(config)
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    convert(tmp_path / "clip.safetensors", tmp_path / "clip")
    ours = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "clip")
    assert all(torch.equal(tensor, clip.state_dict()[name]) for name, tensor in ours.state_dict().items())
    convert(tmp_path / "clip.safetensors", tmp_path / "again.safetensors")
    with safe_open(tmp_path / "again.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}

    save_file(comfy_files.tensors_of("transformer"), tmp_path / "nano.safetensors")
    with pytest.raises(CheckpointError, match="does not say how many heads"):
        convert(tmp_path / "nano.safetensors", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_neighbours_configuration_is_not_taken(tmp_path):
    comfy_files.write(tmp_path / "t5.safetensors", comfy_files.tensors_of("text_encoder_3"))
    (tmp_path / "config.json").write_text(comfy_files.config_of("transformer"))
    convert(tmp_path / "t5.safetensors", tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert "config" not in file.metadata()


@pytest.mark.parametrize(
    ("part", "target", "requested", "message"),
    [
        ("transformer", "a", "fp8", "diffusers files cannot be written in 'fp8'; accepted: bf16, fp16, fp32"),
        ("transformer", "a.safetensors", "Q8_0", "comfy files cannot be written in 'Q8_0'; accepted: bf16"),
        ("text_encoder_3", "a.gguf", "Q8_0", "holds a T5 encoder; accepted for gguf: a HiDream-I1 transformer"),
        ("vae", "a.safetensors", "fp8_scaled", "an autoencoder cannot be written in 'fp8_scaled'"),
        ("tokenizer", "a", None, "lacks its"),
        ("nothing", "a", None, "does not exist"),
    ],
)
def test_what_cannot_be_done_is_named(tmp_path, part, target, requested, message):
    with pytest.raises(ConfigurationError, match=message):
        convert(NANO / part, tmp_path / target, requested)
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced_unless_asked(tmp_path):
    file, folder = tmp_path / "a.safetensors", tmp_path / "folder"
    for target in (file, folder):
        convert(NANO / "text_encoder", target)
        with pytest.raises(ConfigurationError, match=f"{target.name} exists; accepted: a new path, or --force"):
            convert(NANO / "text_encoder", target)
        convert(target, target, "bf16", force=True)  # onto itself, though it is mapped
        assert_equal(target, target, torch.bfloat16)
    (folder / "my novel.txt").write_text("it was a dark and stormy night")
    with pytest.raises(ConfigurationError, match=r"holds more than one part \(my novel.txt\), and --force would"):
        convert(NANO / "text_encoder", folder, force=True)
    (folder / "my novel.txt").unlink()
    with pytest.raises(ConfigurationError, match="is a folder; accepted: the path of a file"):
        convert(NANO / "text_encoder", folder, to=Format.COMFY, force=True)
    with pytest.raises(ConfigurationError, match="is a file; accepted: the path of a folder"):
        convert(NANO / "text_encoder", file, to=Format.DIFFUSERS, force=True)
    (folder / "config.json").unlink()  # then it is somebody's collection
    with pytest.raises(ConfigurationError, match=r"holds weights, but no config.json of one part, and --force would"):
        convert(NANO / "text_encoder", folder, force=True)
    (tmp_path / "b.safetensors.part").mkdir()
    with pytest.raises(ConfigurationError, match=r"b.safetensors.part exists: another process is writing"):
        convert(NANO / "text_encoder", tmp_path / "b.safetensors")
    convert(NANO / "text_encoder", tmp_path / "b.safetensors", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "folder"]


@pytest.mark.parametrize("target", ["a.safetensors", "a.gguf", "folder"])
def test_a_full_disk_leaves_nothing_torn(tmp_path, target):
    path = tmp_path / target
    convert(TRANSFORMER, path)
    before = [file.read_bytes() for file in ([path] if path.is_file() else sorted(path.iterdir()))]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 10**6, limits[1]))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(ConfigurationError, match=f"{target} cannot be written: .*; nothing was left"):
            convert(TRANSFORMER, path, "fp32", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.read_bytes() for file in ([path] if path.is_file() else sorted(path.iterdir()))] == before
    assert [file.name for file in tmp_path.iterdir()] == [target]


AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
"""glibc gives freed tensors back to the system at once, so that what is counted is what is in use."""


def synthetic(path: Path, matrices: int, shape: tuple[int, int]) -> int:
    """A transformer's file of `matrices` equal matrices in bfloat16; returns the bytes of one as float32."""
    names = ["caption_projection.0.linear.weight", *(TO_Q.replace(".0.", f".{i}.") for i in range(matrices - 1))]
    save_file({name: torch.randn(shape).bfloat16() for name in names}, path)
    return 4 * shape[0] * shape[1]


@pytest.mark.parametrize(
    ("matrices", "shape", "target", "kind"),
    [
        (32, (1024, 1024), "b.safetensors", "fp8_scaled"),
        *(
            pytest.param(16, (6912, 2560), target, kind, marks=pytest.mark.long)
            for target, kind in (("b.safetensors", "fp8_scaled"), ("folder", "fp32"), ("b.gguf", "Q8_0"))
        ),
    ],
)
@pytest.mark.integration
def test_a_tensor_at_a_time_is_in_memory(tmp_path, matrices, shape, target, kind):
    one = synthetic(tmp_path / "a.safetensors", matrices, shape)
    script = Path(__file__).parent / "convert_in_process.py"
    command = [sys.executable, str(script), str(tmp_path / "a.safetensors"), str(tmp_path / target), kind]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | AT_ONCE).stdout)
    assert (tmp_path / target).exists()
    assert peak < 4 * one + 8e6 < matrices * one / 2


def test_a_variant_is_for_a_folder_of_comfy_only(tmp_path):
    for source in (NANO, TRANSFORMER, NANO / "transformer" / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(
            ConfigurationError, match=r"variant is dev, and .* is not a ComfyUI models folder; accepted: no variant"
        ):
            convert(source, tmp_path / "a", variant=Variant.DEV)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path / "home"))
    target = str(tmp_path / "folder")
    assert cli.main(["convert", str(TRANSFORMER), target, "--type", "bf16", "--shard-size", "5MB"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert len(shards(tmp_path / "folder")) == SHARDS
    assert cli.main(["convert", str(TRANSFORMER), target]) == 1
    assert "hidream: " + target + " exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["convert", str(TRANSFORMER), target, "--shard-size", "5 apples"])
    assert "accepted: such as 500MB or 5GB" in capsys.readouterr().err
