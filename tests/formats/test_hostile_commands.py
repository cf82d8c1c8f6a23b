"""A malicious model file, given to each command that opens one: a line of error and an exit status."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from test_hostile_files import ARRAY, STRING, UINT8, array, entry, gguf_file, safetensors_file, stated

from hidream import cli
from hidream.model.checkpoint.checkpoint import embedded
from hidream.types import Variant

COMMANDS = (
    ["info", "--model", "it"],
    ["info", "--plan", "--memory", "24", "--model", "it"],
    ["convert", "it", "out"],
    ["generate", "a fox", "--model", "it"],
)


def folder_of(path, changes):
    """Nano's transformer with another configuration."""
    nano = embedded(Variant.DEV).part("transformer")
    path.mkdir()
    for file in nano.glob("*.safetensors"):
        (path / file.name).symlink_to(file)
    (path / "config.json").write_text(json.dumps(json.loads((nano / "config.json").read_text()) | changes))


FILES = {
    "a list": lambda path: path.write_bytes(gguf_file(entry("a", ARRAY, array(UINT8, 2**40)))),
    "texts": lambda path: path.write_bytes(gguf_file(entry("a", ARRAY, array(STRING, 2**40)))),
    "offsets": lambda path: path.write_bytes(safetensors_file({"a": stated(), "b": stated()}, bytes(16))),
    "depth": lambda path: path.write_bytes(safetensors_file(b'{"a":' + b"[" * 100_000)),
    "layers": lambda path: folder_of(path, {"num_layers": 10**9, "llama_layers": [0]}),
    "experts": lambda path: folder_of(path, {"num_routed_experts": 60_000}),
    "class": lambda path: folder_of(path, {"_class_name": ["x\ny"] * 1000}),
    "a state": lambda path: save_file(
        {
            "double_stream_blocks.0.a.weight": torch.zeros(4, 1, dtype=torch.uint8),
            "double_stream_blocks.0.a.weight.quant_state.bitsandbytes__nf4": torch.tensor(2**40),
        },
        path,
    ),
}

FOLDERS = ("layers", "experts", "class")
"""Whose numbers `convert` makes nothing of: it carries them over as they are, and loading refuses them."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "command"),
    [
        pytest.param(file, command, id=f"{file}-{' '.join(command[:2])}")
        for file in FILES
        for command in COMMANDS
        if not (command[0] == "convert" and file in FOLDERS)
    ],
)
def test_a_command_ends_with_a_line(home, capsys, command, file):
    FILES[file](home / "it")
    tokenizers = ["--tokenizers", str(embedded(Variant.DEV).folder)] if command[0] == "generate" else []
    assert cli.main([*command, *tokenizers]) == 1
    printed = capsys.readouterr()
    lines = [line for line in (printed.err + printed.out).splitlines() if "not served" in line or "hidream: " in line]
    own = [line for line in lines if "fast " not in line and "full " not in line]
    assert len(own) == 1
    assert len(own[0]) < 1500
    assert "Traceback" not in printed.err


@pytest.mark.integration
def test_a_worker_does_not_start_and_says_that_it_never_will(home):
    FILES["a list"](home / "it")
    code = "import sys; from hidream import cli; sys.exit(cli.main(['worker', '--model', 'it']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 78, done.stderr
    assert "worker_cannot_start error=" in done.stderr
    assert "Traceback" not in done.stderr
