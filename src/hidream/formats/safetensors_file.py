"""Safetensors files to named tensors, by memory map.

The tensors are views of the mapped file: nothing is read before it is used, nothing is copied, and writing to one
changes this process's copy of a page, never the file (`safe_open` maps privately: 500 MB of weights opened in 2 MB of
memory, checked in `tests/formats/test_detect.py`).
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hidream.errors import CheckpointError


def open_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of one file. Raises CheckpointError when it is torn or not a safetensors file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; accepted: a whole safetensors file ({path.stat().st_size:,} bytes here: "
            "compare with the published size and download it again)"
            if path.is_file()
            else f"{path} cannot be read: {error}"
        ) from error


def shards(folder: Path) -> list[Path]:
    """The safetensors files of one part: those that its index names, or all there are.

    Raises CheckpointError when one is missing or there is none.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = _named_by(indices[0]) if indices else sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"{folder} lacks {', '.join(missing) or 'its *.safetensors file'}")
    return files


def _named_by(index: Path) -> list[Path]:
    try:
        return [index.parent / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}; accepted: an index with a `weight_map`") from error
