"""Tokenizers for single files, which come without: those inside ComfyUI, laid out as hidream reads them.

ComfyUI has them for its own text encoders, and sets in code what their files say otherwise (comfy/text_encoders/
hidream.py and sdxl_clip.py at 0.3.64): Llama's texts are padded with <|eot_id|>, CLIP-G's with "!".
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

CONFIG = "tokenizer_config.json"
SOURCES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "tokenizer": ("sd1_tokenizer", {}),
    "tokenizer_2": ("sd1_tokenizer", {"pad_token": "!"}),
    "tokenizer_3": ("text_encoders/t5_tokenizer", {}),
    "tokenizer_4": ("text_encoders/llama_tokenizer", {"eos_token": "<|eot_id|>"}),
}
"""Where in ComfyUI's package each tokenizer is, and what its configuration is to say instead."""


def lay_out(comfy: Path, target: Path) -> Path | None:
    """Copy the tokenizers of ComfyUI's package `comfy` into a folder, unless it has them; None if some are missing."""
    for source, _ in SOURCES.values():
        names = {file.name for file in (comfy / source).glob("*")}
        if CONFIG not in names or not ("tokenizer.json" in names or "merges.txt" in names):
            return None
    for name, (source, changes) in SOURCES.items():
        if not (target / name / CONFIG).is_file():
            (target / name).mkdir(parents=True, exist_ok=True)
            for file in (comfy / source).iterdir():
                if file.is_file() and file.name != CONFIG:
                    shutil.copyfile(file, target / name / file.name)
            config = json.loads((comfy / source / CONFIG).read_text(encoding="utf-8"))
            text = json.dumps(config | dict(changes), ensure_ascii=False)
            (target / name / CONFIG).write_text(text, encoding="utf-8")  # the last: with it, all are there
    return target
