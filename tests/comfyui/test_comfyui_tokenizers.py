"""ComfyUI's own tokenizers, laid out for the library; with small stand-ins for their files."""

import json

import loaded_nodes
import pytest

CONFIG = "tokenizer_config.json"


@pytest.fixture
def tokenizers(monkeypatch):
    loaded_nodes.load(monkeypatch)
    return loaded_nodes.module("local.tokenizers")


def package(tokenizers, folder, *without):
    for source, _ in tokenizers.SOURCES.values():
        (folder / source).mkdir(parents=True, exist_ok=True)
        (folder / source / CONFIG).write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>", "of": source}))
        if source not in without:
            (folder / source / "tokenizer.json").write_text(source)
    return folder


def test_they_say_what_comfyui_sets_in_code(tokenizers, tmp_path):
    comfy = package(tokenizers, tmp_path / "comfy")
    target = tokenizers.lay_out(comfy, tmp_path / "user" / "tokenizers")
    said = {name: json.loads((target / name / CONFIG).read_text()) for name in tokenizers.SOURCES}
    assert said["tokenizer"] == {"eos_token": "</s>", "pad_token": "<pad>", "of": "sd1_tokenizer"}
    assert said["tokenizer_2"]["pad_token"] == "!"
    assert said["tokenizer_4"]["eos_token"] == "<|eot_id|>"
    assert (target / "tokenizer_3" / "tokenizer.json").read_text() == "text_encoders/t5_tokenizer"


def test_they_are_copied_once(tokenizers, tmp_path):
    comfy = package(tokenizers, tmp_path / "comfy")
    target = tokenizers.lay_out(comfy, tmp_path / "tokenizers")
    (target / "tokenizer" / "tokenizer.json").write_text("mine")
    assert tokenizers.lay_out(comfy, target) == target
    assert (target / "tokenizer" / "tokenizer.json").read_text() == "mine"


def test_a_comfyui_without_one_of_them_has_none(tokenizers, tmp_path):
    comfy = package(tokenizers, tmp_path / "comfy", "text_encoders/llama_tokenizer")
    assert tokenizers.lay_out(comfy, tmp_path / "tokenizers") is None
    assert not (tmp_path / "tokenizers").exists()
