"""Safetensors files to named tensors, by memory map.

The tensors are views of the mapped file: nothing is read before it is used, nothing is copied, and writing to one
changes this process's copy of a page, never the file (`safe_open` maps privately: 500 MB of weights opened in 2 MB of
memory, checked in `tests/formats/test_detect.py`).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats.json_object import object_of, read_object, why


def open_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of one file. Raises CheckpointError when it is torn or not a safetensors file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {_wrong_with(path)}; accepted: a whole safetensors file "
            "(compare with the published size and download it again)"
        ) from error


def _wrong_with(path: Path) -> str:
    """What is wrong with a file that the package refuses: its words are for programmers."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                return f"its {size:,} bytes are no safetensors file, or not all of it"
            header = object_of(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except OSError as error:
        return why(error)
    except (ValueError, TypeError, LookupError, AttributeError):
        return "its header is no list of tensors"
    if size < wanted:
        return f"it ends after {size:,} of {wanted:,} bytes"
    return f"its header does not fit its {size:,} bytes, or has a type that is not known"


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
    accepted = "an index with a `weight_map` of names to files"
    files = read_object(index, accepted).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{index} cannot be read: it names no files; accepted: {accepted}")
    return [index.parent / name for name in sorted(set(files.values()))]
