"""From a path or a Hub id to a checkpoint and its variant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hidream import Pipeline
from hidream.errors import CheckpointError, ConfigurationError, InvalidInput
from hidream.library.source import PART_NAMES, Hub, Parts, find, lora_folder, memory_gb
from hidream.model.checkpoint.checkpoint import NANO
from hidream.parts import NAMED_ALONE
from hidream.types import Variant

TRANSFORMER = NANO / "dev" / "transformer" / "diffusion_pytorch_model.safetensors"


def found(model, variant=None, **parts) -> Variant:
    return find(model, variant, parts, Hub())[0]


@pytest.fixture
def empty(tmp_path):
    """A folder whose name says no variant."""
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def test_the_parts_are_those_of_the_declaration():
    assert tuple(Parts.__annotations__) == (*(part.setting for part in NAMED_ALONE), "tokenizers")
    assert set(PART_NAMES) == set(Parts.__annotations__)


@pytest.mark.parametrize("variant", list(Variant))
def test_a_folder_says_its_variant_by_the_published_scheduler(variant, empty):
    shutil.copytree(NANO / variant / "scheduler", empty / "scheduler")
    assert found(empty) is variant
    assert found(str(empty), str(variant)) is variant
    (empty / "transformer").mkdir()
    assert found(empty / "transformer") is variant  # of the folder around it
    other = next(each for each in Variant if each is not variant)
    with pytest.raises(InvalidInput, match=rf"variant is '{other}', and .* is {variant}, by its scheduler") as caught:
        found(empty, other)
    assert caught.value.field == "variant"


@pytest.mark.parametrize(
    ("scheduler", "variant"),
    [
        ({"_class_name": "FlashFlowMatchEulerDiscreteScheduler", "shift": 6.0}, Variant.DEV),
        ({"_class_name": "FlowUniPCMultistepScheduler"}, Variant.FULL),
        ({"_class_name": "FlowMatchLCMScheduler", "shift": 4.0}, None),
        ({"_class_name": "EulerScheduler", "shift": 6.0}, None),
        ({}, None),
    ],
)
def test_schedulers_of_others(scheduler, variant, empty):
    (empty / "scheduler").mkdir()
    (empty / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    if variant is not None:
        assert found(empty) is variant
    else:
        assert found(empty, "fast") is Variant.FAST
        with pytest.raises(
            InvalidInput, match=r"variant is not given, and neither .*accepted: variant='dev', 'full' or"
        ):
            found(empty)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("HiDream-I1-Full", Variant.FULL),
        ("hidream_i1_fast_fp8.safetensors", Variant.FAST),
        ("hidream-i1-dev-Q4_K_M.gguf", Variant.DEV),
        ("devoted", None),
        ("dev_and_full", None),
    ],
)
def test_otherwise_a_name_says_it(tmp_path, name, variant):
    path = tmp_path / name
    path.touch() if path.suffix in (".safetensors", ".gguf") else path.mkdir()
    if variant is None:
        with pytest.raises(InvalidInput, match="variant is not given"):
            found(path)
    else:
        assert found(path) is variant


def test_the_folder_around_a_transformer_says_it(tmp_path):
    folder = tmp_path / "a@b" / "HiDream-I1-Fast" / "transformer"
    folder.mkdir(parents=True)
    assert found(folder) is found(folder.parent) is Variant.FAST


def test_the_one_transformer_of_a_comfyui_folder_says_it(empty):
    (empty / "diffusion_models").mkdir()
    (empty / "diffusion_models" / "hidream_i1_full.safetensors").symlink_to(TRANSFORMER)
    assert found(empty) is Variant.FULL
    shutil.copyfile(TRANSFORMER, empty / "diffusion_models" / "hidream_i1_fast.safetensors")
    with pytest.raises(CheckpointError, match="has 2 files for the transformer"):
        found(empty)
    assert found(empty, "fast") is Variant.FAST


def test_nothing_is_nano():
    variant, checkpoint = find(None, "full", {"llama": NANO / "dev"}, Hub())
    assert variant is Variant.FULL
    assert checkpoint.part("transformer") == NANO / "full" / "transformer"
    assert checkpoint.part("text_encoder_4") == NANO / "dev" / "text_encoder_4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "no such model"}, "model is 'no such model', which does not exist; accepted: a Hub id such as"),
        ({"model": ""}, "model is ''; accepted: a Hub id"),
        ({"model": 7}, "model is 7; accepted: a Hub id"),
        ({"model": Path("/nowhere")}, "variant is not given"),
        ({"model": "/nowhere/x"}, "model is '/nowhere/x', which does not exist"),
        ({"variant": "dve"}, "variant is 'dve'; accepted: dev, full, fast"),
        ({"llama": "no such file"}, "llama is 'no such file', which does not exist"),
        ({"lama": "x"}, "unknown keyword 'lama'; the nearest is llama; accepted: llama, t5"),
        ({"torch_dtype": "x"}, "unknown keyword 'torch_dtype'; the nearest is dtype"),
        ({"download": True}, "unknown keyword 'download'; the nearest is local_files_only=False"),
        ({"revision": "main"}, "revision is given, and nothing is named by a Hub id"),
        ({"model": NANO / "dev", "token": "x"}, "token is given, and nothing is named by a Hub id"),
        ({"local_files_only": False}, "local_files_only is given, and nothing is named by a Hub id"),
        ({"memory": "lots"}, "memory is 'lots'; accepted: GB, such as 12 or \"12GB\", or None"),
        ({"mode": "quick"}, "mode is 'quick'; accepted: exact, balanced, turbo"),
        ({"device": "cuba"}, "the device 'cuba' cannot be used"),
        ({"dtype": "float12"}, "the dtype 'float12' is not known; accepted: auto, float32"),
        ({"storage": "int3"}, "the storage 'int3' is not known; accepted: auto, compute"),
        (
            {"loras": str(TRANSFORMER)},
            "which is a file; accepted: the folder with it, and loras='diffusion_pytorch_model'",
        ),
        ({"loras": "/nowhere"}, "the folder of LoRAs /nowhere cannot be read"),
    ],
)
def test_what_is_wrong_is_said_by_name(arguments, message):
    with pytest.raises((InvalidInput, ConfigurationError)) as caught:
        Pipeline.from_pretrained(**arguments)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("memory", "gb"),
    [(None, 0), (12, 12), (12.5, 12.5), ("12", 12), ("12GB", 12), ("12 gb", 12), ("12G", 12), ("1.5GB", 1.5)],
)
def test_memory(memory, gb):
    assert memory_gb(memory) == gb
    assert memory_gb("1GiB") == pytest.approx(1.0737, abs=1e-3)


@pytest.mark.parametrize("memory", [0, -1, "0GB", True, "12MB", "", float("nan"), float("inf"), []])
def test_what_is_no_memory(memory):
    with pytest.raises(InvalidInput, match="accepted: GB, such as 12"):
        memory_gb(memory)


def test_without_loras_there_is_no_folder():
    assert lora_folder(None) is None


def test_a_folder_is_loaded_with_its_variant(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path))
    pipe = Pipeline.from_pretrained(NANO / "dev", device="cpu", dtype="float32", memory="8GB", mode="turbo")
    assert (pipe.variant, pipe.device) == (Variant.DEV, "cpu")
    assert "hidream-i1-dev/" in repr(pipe)
    assert "/turbo" in pipe.version
    assert pipe.loras == []
    assert (tmp_path / "hashes.json").is_file()
