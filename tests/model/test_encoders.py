"""Invalid files of encoders and tokenizers: one line that names them, not a library's message."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from hidream.errors import CheckpointError
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded
from hidream.model.checkpoint.encoders import load_encoder, load_tokenizer
from hidream.types import Variant

NANO = embedded(Variant.DEV).folder
FIELDS = {"text_encoder": "clip_l", "text_encoder_3": "t5", "text_encoder_4": "llama"}
LIBRARIES = ("Errno", "Error", "Expecting", "recursion", "object", "unpack", "module", "enum", "backend")


@pytest.mark.parametrize("part", FIELDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": "abc"}, "expected int, got str .value: 'abc'"),
        ({"vocab_size": None}, "expected int, got NoneType"),
        ({"vocab_size": [2400]}, "expected int, got list"),
        ({"dtype": "nothing"}, "its numbers do not fit together"),
        ({"rope_parameters": 5}, "rope_parameters|fit"),
        ({"num_attention_heads": 0, "d_model": []}, ""),
        ({"num_attention_heads": 5, "num_heads": 5}, ""),
        ({"hidden_act": "nothing", "dense_act_fn": "nothing"}, "'nothing' is not known"),
        ({"vocab_size": 2**31 - 1}, "keys 1 of another shape"),
        ({"vocab_size": 10**15}, "it has vocab_size = 1000000000000000; accepted: numbers of a model of"),
        ({"num_hidden_layers": 10**9, "num_layers": 10**9}, "= 1000000000; accepted: numbers of a model of"),
        ({"num_hidden_layers": -1, "num_layers": -1}, "unexpected"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(tmp_path, part, changes, message):
    for file in (NANO / part).glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    stated = json.loads((NANO / part / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | changes))
    with pytest.raises(CheckpointError, match=f"configuration.*{message}") as raised:
        load_encoder(Checkpoint(**{FIELDS[part]: tmp_path}), part, torch.device("cpu"), torch.float32)
    assert str(tmp_path) in raised.value.message
    assert "\n" not in raised.value.message
    assert not [word for word in LIBRARIES if word in raised.value.message], raised.value.message


@pytest.mark.parametrize("text", ["{}", "[]", "{ torn", "[" * 100_000, "null", "", '{"model": {}}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_torn_tokenizer_is_named(tmp_path, name, text):
    shutil.copytree(NANO / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / name).write_text(text)
    if name == "tokenizer_config.json" and text.endswith("}"):
        load_tokenizer(Checkpoint(tokenizers=tmp_path), "tokenizer")  # all that is needed stands in the other file
        return
    with pytest.raises(
        CheckpointError, match=r"tokenizer in .* cannot be loaded: damaged or incomplete .*--token"
    ) as raised:
        load_tokenizer(Checkpoint(tokenizers=tmp_path), "tokenizer")
    assert not [word for word in LIBRARIES if word in raised.value.message.partition(". ")[0]]


def test_an_empty_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(
        CheckpointError, match=r"damaged or incomplete \(empty\); accepted: tokenizer.json and tokenizer_config"
    ):
        load_tokenizer(Checkpoint(tokenizers=tmp_path), "tokenizer")
