"""Checkpoints: parts, shards, single files, storage, clear errors, and digests of their content."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

import comfy_files
from hidream.errors import CheckpointError
from hidream.formats.gguf_file import write_gguf
from hidream.formats.quantized import NF4_CODE, quantize
from hidream.formats.safetensors_file import shards
from hidream.model.checkpoint import checkpoint
from hidream.model.checkpoint.checkpoint import (
    Checkpoint,
    Source,
    embedded,
    load_transformer,
    sources,
)
from hidream.model.loading import load
from hidream.model.network.kernels import Experts
from hidream.parts import PARTS, TOKENIZERS
from hidream.types import Variant, WeightFormat

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint folder, written by diffusers, with only a transformer in it."""
    folder = tmp_path_factory.mktemp("written")
    tiny.reference().save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def folder(tmp_path, written):
    """A copy of such a folder, to be changed."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_loads_what_diffusers_wrote(folder):
    x = tiny.inputs(1, 8, 8)
    model = load_transformer(Checkpoint(folder), CPU, torch.float32)
    assert tiny.relative(model(*x), -tiny.reference()(*x, return_dict=False)[0]) <= 1e-5


def test_loads_shards(folder):
    whole = load_transformer(Checkpoint(folder), CPU, torch.float32)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    file.unlink()
    save_torch_state_dict(
        state,
        folder / "transformer",
        filename_pattern="diffusion_pytorch_model{suffix}.safetensors",
        max_shard_size="1MB",
    )
    assert len(shards(folder / "transformer")) > 2
    sharded = load_transformer(Checkpoint(folder), CPU, torch.float32)
    x = tiny.inputs(1, 8, 8)
    assert tiny.relative(sharded(*x), whole(*x)) <= 1e-6  # not bit for bit: the shards' tensors lie at other addresses

    next((folder / "transformer").glob("*-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"lacks .*00002"):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


@pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape"])
def test_wrong_keys_are_named(folder, change):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = "final_layer.linear.weight"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        name = "somebody.else.weight"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3, 3)
    save_file(state, file)
    with pytest.raises(CheckpointError, match=f"1 {change} .{name}"):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


def test_a_wrong_type_is_named(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["final_layer.linear.weight"] = state["final_layer.linear.weight"].to(torch.int8)
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"1 of a type that is not a float \(final_layer.linear.weight: int8\)"):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


def test_only_a_few_of_many_keys_are_shown(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({key: state[key] for key in state if "single" not in key}, file)
    with pytest.raises(CheckpointError, match=r"keys \d\d missing \((single\S+, ){5}…\)$"):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


def test_a_broken_file_is_named(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors cannot be read"):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("_class_name", "FluxTransformer2DModel", "Flux"),
        ("llama_layers", [0], "llama_layers"),
        ("axes_dims_rope", [8, 8], "axes_dims_rope"),
    ],
)
def test_another_architecture_is_named(folder, key, value, message):
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=message):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


def as_file(tmp_path, state, metadata=True):
    """The tiny transformer as a single file, which says its own numbers."""
    config = (tmp_path / "transformer" / "config.json").read_text() if metadata else ""
    return comfy_files.write(tmp_path / "model.safetensors", state, config)


def answer(state):
    """What diffusers' transformer says with these checkpoint, float32."""
    model = tiny.reference()
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    return -model(*tiny.inputs(1, 8, 8), return_dict=False)[0]


@pytest.mark.parametrize("prefix", ["", pytest.param("model.diffusion_model.", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("storage", [None, WeightFormat.COMPUTE, WeightFormat.STORED])
def test_single_files_of_every_type(folder, prefix, dtype, storage):
    state = {key: tensor.to(dtype) for key, tensor in tiny.reference().state_dict().items()}
    file = as_file(folder, comfy_files.prefixed(state, prefix))
    model = load_transformer(Checkpoint(file), CPU, torch.float32, storage)
    assert tiny.relative(model(*tiny.inputs(1, 8, 8)), answer(state)) <= 1e-5
    kept = storage is WeightFormat.STORED or (storage is None and dtype is torch.float8_e4m3fn)
    assert model.blocks[0].attn1.to_q.weight.dtype is (dtype if kept else torch.float32)
    assert model.blocks[0].attn1.q_rms_norm.weight.dtype is torch.float32
    owned = dtype is not torch.float32 and not kept
    assert bool(model.blocks[0].attn1.fused) is owned  # else fusing would copy what is in the file
    assert model.kernels.experts is Experts.PER_EXPERT


@pytest.mark.parametrize(
    ("dtype", "storage", "on_host", "fuses"),
    [
        (torch.float32, None, "nothing", True),
        (torch.float32, WeightFormat.STORED, "nothing", True),
        (torch.float32, None, "adaLN_modulation", True),  # which are streamed, and not fused in any case
        (torch.float32, None, "experts", False),
        (torch.bfloat16, WeightFormat.STORED, "nothing", False),
    ],
)
def test_fuses_what_is_on_a_card_in_the_compute_type(folder, dtype, storage, on_host, fuses):
    card = torch.device("meta")  # any that is not the CPU
    model = load_transformer(
        Checkpoint(folder), card, dtype, storage, placed=lambda name: CPU if on_host in name else card
    )
    assert bool(model.blocks[0].attn1.fused) is fuses
    assert (model.blocks[-1].ff_i.fused is not None) is fuses
    assert model.kernels.experts is Experts.GROUPED


def test_what_keeps_its_type_stays_in_the_file(folder):
    file = as_file(folder, tiny.reference().to(torch.bfloat16).state_dict())
    model = load_transformer(Checkpoint(file), CPU, torch.float32, WeightFormat.STORED)
    start, end = mapping(file)
    weights_in_file = [start <= layer.weight.data_ptr() < end for layer in linears(model)]
    assert all(weights_in_file)
    assert len(weights_in_file) > 50

    same = load_transformer(Checkpoint(file), CPU, torch.bfloat16, WeightFormat.STORED)
    start, end = mapping(file)
    assert all(start <= parameter.data_ptr() < end for parameter in same.parameters())  # norms and biases too


@pytest.mark.parametrize("storage", [WeightFormat.FP8, WeightFormat.INT8, WeightFormat.NF4])
def test_quantises_while_loading(folder, storage):
    state = tiny.reference().state_dict()
    file = as_file(folder, state)
    model = load_transformer(Checkpoint(file), CPU, torch.float32, storage)
    expected = dict(state)
    for layer in linears(model):
        whole = layer.published.startswith(("t_embedder", "p_embedder", "x_embedder", "final_layer"))
        assert (layer.quantized is None) is whole
        if not whole:
            assert layer.quantized.scheme == storage
            key = f"{layer.published}.weight"
            expected[key] = quantize(state[key], storage).dense(torch.float32)
    assert tiny.relative(model(*tiny.inputs(1, 8, 8)), answer(expected)) <= 1e-5
    assert tiny.relative(answer(expected), answer(state)) > 1e-4  # it does make a difference


def test_gguf_stays_quantised_unless_asked(folder):
    state = tiny.reference().state_dict()
    (folder / "config.json").write_text((folder / "transformer" / "config.json").read_text())
    file = folder / "model.gguf"
    write_gguf(file, state, "Q8_0")
    model = load_transformer(Checkpoint(file), CPU, torch.float32)
    assert model.blocks[0].attn1.to_q.quantized.scheme == "Q8_0"
    expected = {
        f"{layer.published}.weight": layer.quantized.dense(torch.float32)
        for layer in linears(model)
        if layer.quantized is not None
    }
    assert tiny.relative(model(*tiny.inputs(1, 8, 8)), answer(state | expected)) <= 1e-5
    eight = load_transformer(Checkpoint(file), CPU, torch.float32, WeightFormat.INT8)
    assert eight.blocks[0].attn1.to_q.quantized.scheme == "Q8_0"  # as small already
    four = load_transformer(Checkpoint(file), CPU, torch.float32, WeightFormat.NF4)
    assert four.blocks[0].attn1.to_q.quantized.scheme == "nf4"
    dense = load_transformer(Checkpoint(file), CPU, torch.float32, WeightFormat.COMPUTE)
    assert dense.blocks[0].attn1.to_q.quantized is None
    assert tiny.relative(dense(*tiny.inputs(1, 8, 8)), model(*tiny.inputs(1, 8, 8))) <= 1e-5


def test_four_bits_of_bitsandbytes_stay_quantised(folder):
    """The layout of published nf4 folders: uint8 values, scales, the code, and a state in JSON."""
    expected, published = dict(tiny.reference().state_dict()), {}
    for key, tensor in tiny.reference().state_dict().items():
        if not key.endswith("attn1.to_q.weight"):
            published[key] = tensor
            continue
        four = quantize(tensor, "nf4")
        expected[key] = four.dense(torch.float32)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(tensor.shape)}
        published |= {
            key: four.parts["data"].reshape(-1, 1),
            f"{key}.absmax": four.parts["scale"].flatten(),
            f"{key}.quant_map": torch.tensor(NF4_CODE),
            f"{key}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }
    save_file(published, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    model = load_transformer(Checkpoint(folder), CPU, torch.float32)
    assert model.blocks[0].attn1.to_q.quantized.scheme == "nf4"
    assert model.blocks[0].attn1.to_k.quantized is None
    assert tiny.relative(model(*tiny.inputs(1, 8, 8)), answer(expected)) <= 1e-5


def test_a_single_file_of_unknown_width_says_what_it_needs(folder):
    file = as_file(folder, tiny.reference().state_dict(), metadata=False)
    with pytest.raises(CheckpointError, match=r"128 wide.*accepted: 2560 as published, or a config.json"):
        load_transformer(Checkpoint(file), CPU, torch.float32)


def test_a_single_file_passes_over_another_parts_configuration(folder):
    file = as_file(folder, tiny.reference().state_dict(), metadata=False)
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert Checkpoint(file).config("transformer") is None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("vae", r"single file, which has no 'vae'.*--vae"),
        ("text_encoder", "clip_l_hidream.*--clip-l"),
        ("text_encoder_2", "clip_g_hidream.*--clip-g"),
        ("text_encoder_3", "t5xxl.*--t5"),
        ("text_encoder_4", r"Llama-3.1-8B-Instruct: run `hidream models pull llama`.*unsloth.*--llama"),
        ("tokenizer_3", "without tokenizers: download.*--tokenizers"),
    ],
)
def test_parts_that_a_single_file_lacks_are_named(folder, part, message):
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(as_file(folder, tiny.reference().state_dict())).part(part)


def test_parts_may_be_named_one_by_one(tmp_path):
    nano = embedded(Variant.DEV).folder
    own = Checkpoint(folder=tmp_path, vae=nano, clip_l=nano / "text_encoder", t5=tmp_path / "nowhere")
    assert own.part("vae") == nano / "vae"
    assert own.part("text_encoder") == nano / "text_encoder"
    with pytest.raises(CheckpointError, match="nowhere, named for 'text_encoder_3', does not exist"):
        own.part("text_encoder_3")
    with pytest.raises(CheckpointError, match="is not named"):
        Checkpoint().part("transformer")


# Which flag names which parts, beside the checkpoint's own folder.
FLAGS = {
    "transformer": ("transformer",),
    "vae": ("vae",),
    "clip_l": ("text_encoder",),
    "clip_g": ("text_encoder_2",),
    "t5": ("text_encoder_3",),
    "llama": ("text_encoder_4", "tokenizer_4"),
    "tokenizers": TOKENIZERS,
}


@pytest.mark.parametrize("owned", [(), ("transformer",), (*PARTS, *TOKENIZERS)], ids=["nothing", "transformer", "all"])
@pytest.mark.parametrize("also", [False, True], ids=["only what is named", "whole checkpoints"])
def test_a_part_comes_from_where_it_was_named_or_from_its_own_folder(tmp_path, owned, also):
    """All 128 combinations of flags, beside a folder `dev` that has everything and lends nothing."""
    parts = (*PARTS, *TOKENIZERS)
    own = make_folder(tmp_path / "full", owned)
    make_folder(tmp_path / "dev", parts)
    for flag, named in FLAGS.items():
        make_folder(tmp_path / flag, parts if also else named)
    for flags in itertools.chain.from_iterable(itertools.combinations(FLAGS, n) for n in range(len(FLAGS) + 1)):
        checkpoint = Checkpoint(own, **{flag: tmp_path / flag for flag in flags})
        expected = {name: own / name if name in owned else None for name in parts}
        expected |= {name: tmp_path / flag / name for flag in flags for name in FLAGS[flag]}  # tokenizers after llama
        assert {name: found(checkpoint, name) for name in parts} == expected, flags


def make_folder(folder, parts):
    folder.mkdir()
    for name in parts:
        (folder / name).mkdir()
        file = "model.safetensors" if name in PARTS else "tokenizer.json"
        (folder / name / file).write_text("{}")
    return folder


def found(checkpoint, name):
    if checkpoint.has(name):
        return checkpoint.part(name)
    with pytest.raises(CheckpointError, match=f"no folder '{name}'"):
        checkpoint.part(name)
    return None


def test_a_folder_that_has_nothing_of_the_part_it_is_named_for_is_refused(tmp_path):
    for named in (tmp_path, embedded(Variant.FULL).folder):
        with pytest.raises(CheckpointError, match=r"named for 'vae', has no folder 'vae' and no weights.*--vae"):
            Checkpoint(embedded(Variant.DEV).folder, vae=named).part("vae")


def test_only_nano_shares_parts_between_its_variants(tmp_path):
    nano = embedded(Variant.FULL)
    assert nano.part("vae") == embedded(Variant.DEV).part("vae")
    assert nano.part("transformer") != embedded(Variant.DEV).part("transformer")
    for variant in (Variant.DEV, Variant.FULL):
        shutil.copytree(embedded(variant).folder, tmp_path / variant)
    with pytest.raises(CheckpointError, match=r"full has no folder 'vae'.*--vae"):
        load(Variant.FULL, tmp_path / "full")


def test_tokenizers_give_tokenizers_and_nothing_else(tmp_path):
    """The documented [models] block, whose tokenizers name Dev's folder."""
    for variant in (Variant.DEV, Variant.FULL):
        shutil.copytree(embedded(variant).folder, tmp_path / variant)
    dev = tmp_path / "dev"
    named = dict.fromkeys(("llama", "t5", "clip_l", "clip_g", "vae", "tokenizers"), dev)
    checkpoint = Checkpoint(tmp_path / "full", **named)
    assert checkpoint.part("transformer") == tmp_path / "full" / "transformer"
    assert load(Variant.FULL, checkpoint).version == load(Variant.FULL).version


def test_a_folder_of_tokenizers_names_those_that_it_has(tmp_path):
    own = embedded(Variant.DEV).folder
    shutil.copytree(own / "tokenizer_4", tmp_path / "some" / "tokenizer_4")
    checkpoint = Checkpoint(own, tokenizers=tmp_path / "some")
    assert checkpoint.part("tokenizer_4") == tmp_path / "some" / "tokenizer_4"
    assert checkpoint.part("tokenizer") == own / "tokenizer"
    with pytest.raises(CheckpointError, match=r"vae, named for the tokenizers, has none of tokenizer, tokenizer_2"):
        Checkpoint(own, tokenizers=own / "vae").part("tokenizer")


def test_the_folder_of_a_transformer_is_a_transformer(tmp_path):
    own = embedded(Variant.DEV).folder
    assert Checkpoint(own / "transformer", vae=own).part("transformer") == own / "transformer"
    assert Checkpoint(own / "transformer", vae=own).index() == Checkpoint(own).index()  # which settles the best size
    with pytest.raises(CheckpointError, match=r"has no folder 'vae'"):
        Checkpoint(own / "transformer").part("vae")


def test_sources_name_every_part_and_its_content(tmp_path):
    nano, cache = embedded(Variant.FULL), tmp_path / "hashes.json"
    found = sources(nano, cache)
    assert list(found) == [*PARTS, *TOKENIZERS]
    assert found["vae"].path == nano.part("vae")
    shutil.copytree(nano.part("vae"), tmp_path / "vae")
    other = sources(Checkpoint(nano.folder, vae=tmp_path / "vae", shared=nano.shared), cache)
    assert other["vae"] == Source(tmp_path / "vae", found["vae"].digest)
    file = next((tmp_path / "vae").glob("*.safetensors"))
    state = load_file(file)
    state[next(iter(state))] += 1
    save_file(state, file)
    changed = sources(Checkpoint(nano.folder, vae=tmp_path / "vae", shared=nano.shared), cache)
    assert [name for name in found if changed[name].digest != found[name].digest] == ["vae"]


def linears(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)]


def mapping(file):
    """First and last address of a file's latest mapping, which safetensors makes whole."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    starts, ends = zip(*(line.split()[0].split("-") for line in lines), strict=True)
    return min(int(start, 16) for start in starts), max(int(end, 16) for end in ends)


@pytest.mark.slow
def test_llama_may_lie_elsewhere(tmp_path):
    nano = embedded(Variant.DEV).folder
    shutil.copytree(nano, tmp_path / "model")
    llama = tmp_path / "llama"
    shutil.copytree(tmp_path / "model" / "text_encoder_4", llama)
    shutil.copytree(tmp_path / "model" / "tokenizer_4", llama, dirs_exist_ok=True)
    for part in ("text_encoder_4", "tokenizer_4"):
        shutil.rmtree(tmp_path / "model" / part)
    with pytest.raises(CheckpointError, match=r"Llama-3.1-8B-Instruct: run `hidream models pull llama`"):
        load(Variant.DEV, tmp_path / "model")
    with pytest.raises(CheckpointError, match="does not exist"):
        load(Variant.DEV, Checkpoint(tmp_path / "model", llama=tmp_path / "nowhere"))
    model = load(Variant.DEV, Checkpoint(tmp_path / "model", llama=llama))
    assert torch.equal(model.text.encode(["a cat"]).llama, load(Variant.DEV).text.encode(["a cat"]).llama)


def test_hash_follows_the_content(tmp_path):
    cache, file = tmp_path / "cache" / "hashes.json", tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    first = checkpoint.weights_hash([file], cache)
    assert checkpoint.weights_hash([file], None) == checkpoint.weights_hash([file], cache) == first
    file.write_bytes(b"other")
    assert checkpoint.weights_hash([file], cache) != first
    cache.write_text("{ torn")
    assert checkpoint.weights_hash([file], cache) == checkpoint.weights_hash([file], None)


def test_what_was_hashed_is_not_read_again_while_it_is_unchanged(tmp_path):
    """The cache is by path, size and time of change: a file with all three of another counts as the other."""
    cache, file = tmp_path / "hashes.json", tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    first, stat = checkpoint.weights_hash([file], cache), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert checkpoint.weights_hash([file], cache) == first != checkpoint.weights_hash([file], None)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert checkpoint.weights_hash([file], cache) == checkpoint.weights_hash([file], None)


def test_a_checkpoint_without_an_index_states_nothing(folder):
    assert Checkpoint(folder).index() == {}
    (folder / "model_index.json").write_text('{"transformer": ["diffusers", "X"]}')
    assert Checkpoint(folder).index() == {"transformer": ["diffusers", "X"]}
