"""The files in ComfyUI's own folders that the nodes offer, by the names that ComfyUI shows.

A name is a path within one of the folders of a kind, of which `extra_model_paths.yaml` may add some. GGUF files are
offered beside safetensors, which ComfyUI's own lists leave out. Only names are read; hidream reads the headers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import folder_paths

AUTO = "auto"
NANO = "nano (inside hidream)"
"""The choice of the small model that comes with hidream, for trying things out."""
DIFFUSERS = "diffusers"
SUFFIXES = (".safetensors", ".sft", ".gguf")
FOLDERS = {
    "model": "diffusion_models",
    "llama": "text_encoders",
    "t5": "text_encoders",
    "clip_l": "text_encoders",
    "clip_g": "text_encoders",
    "vae": "vae",
    "lora": "loras",
}
"""ComfyUI's kind of folder of each input."""


def models() -> list[str]:
    """What Load HiDream-I1 offers: files of transformers, folders of diffusers, nano."""
    return [*names("model"), *_diffusers(), NANO]


def names(field: str) -> list[str]:
    """The files of an input's folders, as ComfyUI names them, sorted."""
    return sorted(_files(FOLDERS[field]))


def paths(field: str) -> list[Path]:
    """The same files, as paths."""
    return [path for _, path in sorted(_files(FOLDERS[field]).items())]


def path_of(field: str, name: str) -> Path:
    """Find the file or folder that an input names. Raises InvalidInput, which says where it should be."""
    from hidream.errors import InvalidInput

    kind = FOLDERS[field]
    found = _files(kind).get(name)
    if found is None and field == "model":
        found = _diffusers().get(name)
    if found is None:
        raise InvalidInput(f"{field} names {name!r:.200}, which is not there; accepted: {where(field)}", field=field)
    return found


def where(field: str) -> str:
    """Say where the files of an input belong."""
    return "a file in " + " or ".join(folder_paths.get_folder_paths(FOLDERS[field]))


def tokenizers(beside: Path) -> Path | None:
    """Find a folder with `tokenizer/` .. `tokenizer_4/` in ComfyUI's folders of models, or that of a file.

    Otherwise ComfyUI's own are laid out in its user folder; None if it lacks some.
    """
    import comfy.sd1_clip

    from .tokenizers import lay_out

    roots = {folder.parent: None for kind in ("diffusion_models", "text_encoders") for folder in _roots(kind)}
    candidates = [beside.parent, *roots, *(root / "tokenizers" for root in roots)]
    found = next((folder for folder in candidates if (folder / "tokenizer").is_dir()), None)
    own = Path(folder_paths.get_user_directory()) / "hidream" / "tokenizers"
    return found or lay_out(Path(comfy.sd1_clip.__file__).parent, own)


def _diffusers() -> dict[str, Path]:
    """Folders in the layout of diffusers, by "diffusers/NAME"."""
    found: dict[str, Path] = {}
    for root in _roots(DIFFUSERS):
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if (folder / "model_index.json").is_file():
                found.setdefault(f"{DIFFUSERS}/{folder.name}", folder)
    return found


def _files(kind: str) -> dict[str, Path]:
    """Files of a kind by name; of two with one name the first, as ComfyUI has it."""
    found: dict[str, Path] = {}
    for root in _roots(kind):
        for file in _below(root):
            found.setdefault(str(file.relative_to(root)), file)
    return found


def _below(root: Path) -> Iterable[Path]:
    visited: set[str] = set()
    for at, below, names_here in os.walk(root, followlinks=True):
        is_new = os.path.realpath(at) not in visited  # a link may lead back
        visited.add(os.path.realpath(at))
        below[:] = sorted(below) if is_new else []
        yield from (Path(at) / name for name in names_here if is_new and name.lower().endswith(SUFFIXES))


def _roots(kind: str) -> list[Path]:
    try:
        return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]
    except KeyError:  # a ComfyUI that has no folders of this kind
        return []
