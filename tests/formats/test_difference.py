"""Differences: the same bits everywhere, one place that adds them, and clear errors; nano's Full and Fast are some."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hidream.errors import CheckpointError
from hidream.formats.convert import convert
from hidream.formats.detect import read, read_shapes
from hidream.formats.difference import add
from hidream.formats.targets import ConversionOptions, Format
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded, sources, weights_hash
from hidream.model.checkpoint.inferred import published_config
from hidream.model.memory.plan_input import PlanRequest, partial
from hidream.types import Size, Variant

MATRIX = "double_stream_blocks.0.block.attn1.to_q.weight"
BIAS = "double_stream_blocks.0.block.attn1.to_q.bias"
KINDS = (torch.float16, torch.bfloat16, torch.float32)


def tensors(rows=3, columns=5, dtype=torch.float16):
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(rows, columns, generator=generator).to(dtype)
    steps = torch.randint(-31, 32, (rows, columns), generator=generator, dtype=torch.int8)
    scale = (torch.rand(rows, 1, generator=generator) / 100).to(torch.bfloat16)
    return base, steps, scale


@pytest.fixture
def models(tmp_path):
    """Two folders, `dev` with a whole file and `full` with its difference; returns what changes the latter."""
    base, steps, scale = tensors()
    file = tmp_path / "dev" / "transformer" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file({MATRIX: base, BIAS: torch.zeros(3).half()}, file)
    (tmp_path / "full" / "transformer").mkdir(parents=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    own = {f"{MATRIX}.difference": steps, f"{MATRIX}.scale": scale, BIAS: torch.ones(3).half()}

    def write(stated=None, **changes):
        path = tmp_path / "full" / "transformer" / "difference.safetensors"
        kept = {name: tensor for name, tensor in (own | changes).items() if tensor is not None}
        save_file(kept, path, {"difference": json.dumps({"base": "dev", "sha256": digest} | (stated or {}))})
        return path

    return write


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_the_sum_is_made_in_float32_and_rounded_once(dtype):
    base, steps, scale = tensors(40, 500, dtype)
    exact = base.double() + steps.double() * scale.double()
    assert torch.equal(add(base, steps, scale), exact.float().to(dtype))
    added = base.float().numpy() + steps.numpy().astype(np.float32) * scale.float().numpy()
    assert torch.equal(add(base, steps, scale), torch.from_numpy(added).to(dtype))


def test_a_product_is_exact_in_float32():
    """So a CPU that multiplies and adds at once rounds no less than others: the bits are the same."""
    scale = torch.arange(2**7, 2**8).to(torch.bfloat16)[:, None]  # every mantissa
    steps = torch.arange(-128, 128, dtype=torch.int8)[None]
    assert torch.equal(steps.float() * scale.float(), (steps.long() * scale.long()).float())
    assert int((steps.long() * scale.long()).abs().max()) < 2**24


def test_a_folder_and_a_file_are_read_with_their_base(models, tmp_path):
    path = models()
    base, steps, scale = tensors()
    for given in (path, path.parent):
        found = read(given).tensors
        assert found.keys() == {MATRIX, BIAS}
        assert torch.equal(found[MATRIX], add(base, steps, scale))
        assert torch.equal(found[BIAS], torch.ones(3).half())
        for shapes in (read_shapes(given), read(given, values=False)):
            named = {name: (tensor.shape, tensor.dtype) for name, tensor in shapes.tensors.items()}
            assert named == {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()}


def test_a_file_is_found_from_its_own_folder(models, monkeypatch):
    path = models()
    monkeypatch.chdir(path.parent)
    assert torch.equal(read(type(path)(path.name)).tensors[MATRIX], read(path).tensors[MATRIX])


def test_a_tensor_that_is_not_named_is_left_out(models):
    assert read(models(**{BIAS: None})).tensors.keys() == {MATRIX}


STATED = [
    ({"base": None}, r"its metadata `difference` says .*; accepted: `base`, the name of a folder"),
    ({"base": "../../etc"}, r"says .*'\.\./\.\./etc'"),
    ({"base": "/etc"}, "says .*'/etc'"),
    ({"base": ".."}, "says "),
    ({"base": "a\nb"}, r"says .*a\\nb"),
    ({"base": "x" * 300}, "says "),
    ({"sha256": "12"}, "says "),
    ({"sha256": ["a"] * 64}, "says "),
    (
        {"sha256": "0" * 64},
        r"is a difference to another file than .*dev.*model\.safetensors; accepted: .* 000000000000",
    ),
    ({"base": "fast"}, r"is a difference to the file in .*fast.*transformer, but .* lacks its \*\.safetensors file"),
    ({"base": "full"}, r"is a difference to .*full.*, which is one itself; accepted: a whole file"),
]


@pytest.mark.parametrize(("stated", "message"), STATED, ids=lambda value: str(value)[:30])
def test_metadata_that_names_no_base(models, stated, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        read(models(stated))
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 1000


def test_metadata_that_is_no_json(models):
    path = models()
    save_file(load_file(path), path, {"difference": "[1]"})
    with pytest.raises(CheckpointError, match=r"`difference` cannot be read: it is JSON, but not an object; accepted"):
        read(path)


def test_a_base_of_several_files(models, tmp_path):
    path = models()
    shutil.copy(
        tmp_path / "dev" / "transformer" / "model.safetensors", tmp_path / "dev" / "transformer" / "b.safetensors"
    )
    with pytest.raises(CheckpointError, match="has several files of weights; accepted: both side by side"):
        read(path)


def test_a_base_that_was_changed(models, tmp_path):
    path = models()
    file = tmp_path / "dev" / "transformer" / "model.safetensors"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(CheckpointError, match="is a difference to another file than"):
        read(path)
    file.write_bytes(changed[:-1])
    with pytest.raises(
        CheckpointError, match=r"is a difference .*but .*model.safetensors cannot be read: it is cut off"
    ):
        read(path)


FLOATS, NANS = torch.ones(3, 5), torch.full((3, 1), torch.nan, dtype=torch.bfloat16)
FITS = [
    ({f"{MATRIX}.scale": None}, r"has .*weight\.difference; accepted: \.difference and \.scale of a tensor"),
    ({f"{MATRIX}.difference": None}, r"has .*weight\.scale; accepted"),
    ({MATRIX: FLOATS}, r"also there whole"),
    (
        {"other.difference": torch.ones(3, 5, dtype=torch.int8), "other.scale": torch.ones(3, 1).bfloat16()},
        r"has other\.(difference|scale); accepted",
    ),
    ({f"{MATRIX}.difference": FLOATS}, r"difference is float32 \[3, 5\]; accepted: int8 \[3, 5\]"),
    (
        {f"{MATRIX}.difference": torch.ones(5, 3).to(torch.int8)},
        r"difference is int8 \[5, 3\]; accepted: int8 \[3, 5\]",
    ),
    ({f"{MATRIX}.scale": torch.ones(3, 1)}, r"scale is float32 \[3, 1\]; accepted: finite bfloat16 \[3, 1\]"),
    ({f"{MATRIX}.scale": torch.ones(3).bfloat16()}, r"scale is bfloat16 \[3\]; accepted: finite bfloat16 \[3, 1\]"),
    ({f"{MATRIX}.scale": torch.ones(1, 5).bfloat16()}, r"scale is bfloat16 \[1, 5\]; accepted"),
    ({f"{MATRIX}.scale": NANS}, r"scale is not finite, bfloat16 \[3, 1\]; accepted"),
    (
        {f"{BIAS}.difference": torch.ones(3, dtype=torch.int8), f"{BIAS}.scale": torch.ones(3).bfloat16(), BIAS: None},
        r"has a difference to .*bias, which is float16 \[3\]; accepted: matrices of float16, bfloat16 or float32",
    ),
]


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize(("changes", "message"), FITS, ids=lambda value: str(value)[-40:])
def test_parts_that_do_not_fit(models, changes, message, values):
    with pytest.raises(CheckpointError, match=message) as raised:
        read(models(**changes), values=values)
    assert raised.value.message.isprintable()


def test_a_plan_computes_no_sum(models, tmp_path):
    """A plan needs shapes and types only, and must not take the time."""
    path = models({"sha256": "0" * 64})
    assert read(path, values=False).tensors.keys() == {MATRIX, BIAS}
    with pytest.raises(CheckpointError, match="another file"):
        read(path)


@pytest.mark.parametrize("variant", [Variant.FULL, Variant.FAST])
def test_nanos_variants_are_differences_to_dev(variant, tmp_path):
    """They count and plan as whole transformers, and convert to some."""
    folder = embedded(variant).part("transformer")
    assert [file.name for file in sorted(folder.iterdir())] == ["config.json", "difference.safetensors"]
    request = PlanRequest(variant, Size(512, 512), None, torch.float32)
    assert partial(embedded(variant), request)[1].stored_bits == partial(embedded(Variant.DEV), request)[1].stored_bits
    found, dev = read(folder).tensors, read(embedded(Variant.DEV).part("transformer")).tensors
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in dev.items()}
    convert(folder, tmp_path / "whole", ConversionOptions(Format.DIFFUSERS), published_config, lambda *_: None)
    assert [file.name for file in (tmp_path / "whole").glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    whole = read(tmp_path / "whole").tensors
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in found)


def test_nanos_sums_have_these_bits():
    """On every machine, and if computed by numpy from the layout as docs/NANO.md has it."""
    digests = {}
    for variant in (Variant.FULL, Variant.FAST):
        state = hashlib.sha256()
        for _, tensor in sorted(read(embedded(variant).part("transformer")).tensors.items()):
            state.update(tensor.contiguous().numpy().tobytes())
        digests[variant] = state.hexdigest()[:16]
    assert digests == {Variant.FULL: "223bb0b5bcdec042", Variant.FAST: "01c952768b1a055d"}


def test_a_version_names_the_difference_and_so_its_base(models, tmp_path):
    path = models()
    before = weights_hash([path], None)
    assert weights_hash([models({"sha256": "0" * 64})], None) != before
    files = embedded(Variant.FULL).weight_files()
    assert [file.name for file in files].count("difference.safetensors") == 1
    found = sources(Checkpoint(embedded(Variant.FULL).folder, shared=embedded(Variant.DEV).folder), None)
    assert found["transformer"].path == embedded(Variant.FULL).part("transformer")
