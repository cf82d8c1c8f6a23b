"""The parts of a model in a ComfyUI models folder, or in a repository of its layout (Comfy-Org's `split_files/`).

    diffusion_models/ or unet/      the transformers of all variants, and of other models
    text_encoders/ or clip/         CLIP-L, CLIP-G, T5 and Llama, and other models' encoders
    vae/                            FLUX's autoencoder, and others
    tokenizers/ or tokenizer*/      ComfyUI does not have these: `hidream convert` writes them

A file is recognised by the names and shapes of its tensors; only headers are read. The variant of a transformer is an
exception: only the name of its file states it. Files of other models are ignored. If two files are possible, it is an
error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Size

from hidream.errors import CheckpointError
from hidream.formats.detect import Published, read_shapes
from hidream.parts import CLIP_G, CLIP_L, ENCODERS, LLAMA, PARTS, T5, TRANSFORMER, VAE, Kind
from hidream.types import Variant

ROOTS = ("", "split_files", "models")
"""Where in a folder the layout may begin."""
SUFFIXES = (".safetensors", ".sft", ".gguf")
TOKENIZERS = "tokenizers"
PARTS_IN_ORDER = (TRANSFORMER, *ENCODERS, VAE)
"""The parts, in the order in which they are searched."""
STOCK_CLIP_POSITIONS = 77
"""Of CLIPs that were not trained anew for HiDream-I1."""
PUBLISHED_LLAMA = (128256, 4096)
"""Vocabulary and width of Llama-3.1-8B; others of this width have another vocabulary."""
POSITIONS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
EDIT_MODEL = "e1"
"""Part of the names of HiDream-E1's files, which have the same tensors as I1's."""
CAPTION = re.compile(r"caption_projection\.(\d+)\.")
PATCH = 2

Shapes = Mapping[str, Size]


@dataclass(frozen=True, slots=True)
class _Widths:
    """What a transformer takes from the other parts, in channels."""

    t5: int
    llama: int
    pooled: int  # of both CLIPs
    latent: int


def root_of(path: Path) -> Path | None:
    """Where the layout begins in a folder, or around a transformer's file; None: it is another layout."""
    if path.is_file():
        return next(
            (folder.parent for folder in path.absolute().parents if folder.name in TRANSFORMER.comfy_folders), None
        )
    if (path / "model_index.json").is_file() or (path / "transformer").is_dir():
        return None
    folders = (*TRANSFORMER.comfy_folders, *LLAMA.comfy_folders)
    return next((path / root for root in ROOTS if any((path / root / name).is_dir() for name in folders)), None)


def parts_in(
    path: Path, variant: Variant | None, named: Mapping[str, Path], *, complete: bool = True
) -> dict[str, Path]:
    """Find each part that is not `named`, in a folder or around a transformer's file; nothing in another layout.

    With them comes "tokenizers", if there are some. Raises CheckpointError where several files would do for a part, or
    none does in a folder that is to be `complete`; a transformer there must be.
    """
    root = root_of(path)
    if root is None or named.keys() >= PARTS.keys():
        return {}
    found = {} if path.is_dir() else {"transformer": path}
    if "transformer" not in found | dict(named):
        found["transformer"] = _transformer(root, variant)
    if found.keys() | named.keys() == PARTS.keys():
        return found | _tokenizers(root)
    parts, others = _scan(root, _widths({**found, **named}["transformer"]))
    for part in (each.name for each in PARTS_IN_ORDER):
        files = parts.get(part, [])
        if part in found or part in named or (not files and (path.is_file() or not complete)):
            continue
        if len(files) != 1:
            raise CheckpointError(_not_one(root, part, files, others))
        found[part] = files[0]
    return found | _tokenizers(root)


def encoders_and_vae(files: Iterable[Path], transformer: Path) -> dict[str, list[Path]]:
    """Find among some files, wherever they are, those that would do for each other part of a transformer's model.

    Files of other models, and files that cannot be read, are ignored. Raises CheckpointError on a transformer that is
    none.
    """
    widths, parts = _widths(transformer), dict[str, list[Path]]()
    for file in files:
        try:
            part = _part_of(read_shapes(file), widths)
        except CheckpointError:
            continue
        if part is not None:
            parts.setdefault(part, []).append(file)
    return parts


def _transformer(root: Path, variant: Variant | None) -> Path:
    """The transformer that is named as the variant's, or the only one that is not named as another's."""
    files, others = [], {}
    for file, published in _opened(root, TRANSFORMER.comfy_folders):
        if isinstance(published, str) or published.kind is not Kind.TRANSFORMER:
            others[file] = published if isinstance(published, str) else f"it holds {published.kind}"
        elif EDIT_MODEL in _words(file):
            others[file] = "HiDream-E1, by its name"
        else:
            files.append(file)
    unnamed = [file for file in files if not _words(file) & set(Variant)]
    chosen = [file for file in files if variant in _words(file)] or (unnamed if variant else files)
    if len(chosen) != 1:
        others |= {file: "another variant, by its name" for file in files if file not in chosen}
        raise CheckpointError(_not_one(root, "transformer", chosen, others, variant))
    return chosen[0]


def _scan(root: Path, widths: _Widths) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """The files that would do for each part but the transformer, and the others with the reason why not."""
    parts: dict[str, list[Path]] = {}
    others: dict[Path, str] = {}
    for file, published in _opened(root, (*LLAMA.comfy_folders, *VAE.comfy_folders)):
        part = None if isinstance(published, str) else _part_of(published, widths)
        if part is not None:
            parts.setdefault(part, []).append(file)
        else:
            others[file] = published if isinstance(published, str) else f"{published.kind}, but not HiDream-I1's"
    return parts, others


def _part_of(published: Published, widths: _Widths) -> str | None:
    """The part that a file is, if it fits the transformer."""
    shapes = _shapes(published)
    try:
        match published.kind:
            case Kind.CLIP:
                return _clip(published.path, shapes, widths)
            case Kind.T5:  # UMT5 has positions in every block
                fits = shapes["shared.weight"][1] == widths.t5 and POSITIONS.format(1) not in shapes
                return T5.name if fits else None
            case Kind.LLAMA:
                size = tuple(shapes["embed_tokens.weight"])
                fits = size[1] == widths.llama and (size[1] != PUBLISHED_LLAMA[1] or size == PUBLISHED_LLAMA)
                return LLAMA.name if fits else None
            case Kind.VAE:
                kernel = shapes["decoder.conv_in.weight"]
                return "vae" if len(kernel) == 4 and kernel[1] == widths.latent else None
            case _:
                return None
    except (KeyError, IndexError, ValueError):  # another model of the same family
        return None


def _clip(file: Path, shapes: Shapes, widths: _Widths) -> str | None:
    """Which CLIP it is: by its width, or where a small model has other widths, by its file's name."""
    positions, width = shapes["text_model.embeddings.position_embedding.weight"]
    if positions == STOCK_CLIP_POSITIONS:
        return None
    is_published = widths.pooled == CLIP_L.width + CLIP_G.width
    clips = (CLIP_L, CLIP_G)
    fits = [clip.name for clip in clips if (width == clip.width if is_published else clip.setting in file.stem)]
    return fits[0] if fits else None


def _widths(transformer: Path) -> _Widths:
    shapes = _shapes(read_shapes(transformer))
    last = max((int(match[1]) for name in shapes if (match := CAPTION.match(name))), default=0)
    try:
        return _Widths(
            t5=shapes[f"caption_projection.{last}.linear.weight"][1],
            llama=shapes["caption_projection.0.linear.weight"][1],
            pooled=shapes["p_embedder.pooled_embedder.linear_1.weight"][1],
            latent=shapes["final_layer.linear.weight"][0] // PATCH**2,
        )
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{transformer} is not a complete HiDream-I1 transformer: {error} is missing") from error


def _tokenizers(root: Path) -> dict[str, Path]:
    """The folder with `tokenizer{,_2,_3,_4}/`, if there is one."""
    found = next((path for path in (root / TOKENIZERS, root) if (path / "tokenizer").is_dir()), None)
    return {TOKENIZERS: found} if found else {}


def _opened(root: Path, folders: Sequence[str]) -> Iterator[tuple[Path, Published | str]]:
    """Every file in some folders with what it holds, or why it cannot be read."""
    for file in _files(root, folders):
        try:
            yield file, read_shapes(file)
        except CheckpointError as error:
            yield file, error.message.replace(str(file), "it").partition("; accepted")[0]


def _files(root: Path, folders: Sequence[str]) -> list[Path]:
    """Files in some folders and below, also where links lead, as ComfyUI looks for them; each once."""
    files: dict[str, Path] = {}
    visited: set[str] = set()
    for folder in folders:
        for at, below, names in os.walk(root / folder, followlinks=True):
            is_new = os.path.realpath(at) not in visited
            visited.add(os.path.realpath(at))
            below[:] = sorted(below) if is_new else []
            for file in (Path(at) / name for name in names if is_new):
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    files.setdefault(os.path.realpath(file), file)
    return sorted(files.values())


def _words(file: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", file.stem.lower()))


def _shapes(published: Published) -> Shapes:
    return {name: tensor.shape for name, tensor in published.tensors.items()}


def _not_one(
    root: Path, part: str, files: Sequence[Path], others: Mapping[Path, str], variant: Variant | None = None
) -> str:
    """What is wrong where not exactly one file would do for a part."""
    what = f"{part} of {variant}" if variant else part
    where = " or ".join(f"{folder}/" for folder in PARTS[part].comfy_folders)
    if files:
        shown = ", ".join(str(file.relative_to(root)) for file in files)
        flag = "--variant" if part == "transformer" and variant is None else PARTS[part].flag
        return f"{root} has {len(files)} files for the {what}: {shown}; accepted: one, named with {flag}"
    row = PARTS[part]
    passed = [
        f"{file.relative_to(root)} ({why})" for file, why in others.items() if _under(file, root, row.comfy_folders)
    ]
    shown = f"; ignored: {', '.join(passed)}" if passed else ""
    return f"{root} has no {what} in {where}{shown}; accepted: {row.comfy_published}, or its path in {row.flag}"


def _under(file: Path, root: Path, folders: Sequence[str]) -> bool:
    return file.relative_to(root).parts[0] in folders
