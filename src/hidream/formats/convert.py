"""Published files from one format and type into another: what `hidream convert` does.

    source: anything that `detect.read` opens, or a whole model, part by part: a folder of diffusers or of ComfyUI
    target: a folder of one part for diffusers, a ComfyUI file, a GGUF file (`targets.py`), or a folder of all parts

One tensor at a time is in memory, beside the mapped pages of the source, which the system takes back when it wants.
What HiDream-I1 has no use for (Llama's head, T5's decoder) is left out. Files appear whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hidream.errors import ConfigurationError
from hidream.formats.comfy_folder import TOKENIZERS, parts_in, root_of
from hidream.formats.detect import Published, class_in, config_of, read, read_json, stated_as
from hidream.formats.retype import PLAIN
from hidream.formats.targets import Config, Format, Infer, Wish, settled_type, write
from hidream.formats.whole_files import appearing, check_free, copying
from hidream.parts import ENCODERS, PARTS, TRANSFORMER, VAE, Kind
from hidream.types import Variant

OnBytes = Callable[[Path, int, int], None]
"""Is told what is being written, and how many bytes, of how many, have been dealt with."""

SUFFIXES = {".gguf": Format.GGUF, ".safetensors": Format.COMFY}
"""What the name of a file says; any other is a folder's."""
WHOLE = "model_index.json"
"""Makes a folder of diffusers a whole model."""
CARRIED = {"model_index": WHOLE, "scheduler": "scheduler/scheduler_config.json"}
"""What else a whole model says of itself: in the metadata of a transformer's file, and in a folder of diffusers."""
WRITTEN = (TRANSFORMER, *ENCODERS, VAE)
"""The parts of a whole model, in the order in which they are written."""
COMPANIONS = (".json", ".model", ".txt", ".jinja")
"""Endings of small files beside weights, such as a tokenizer's."""


@dataclass(frozen=True, slots=True)
class _Whole:
    """A whole model, in either layout."""

    name: str
    parts: dict[str, Path]
    small: dict[str, Path]  # files without weights, by their paths in a folder of diffusers
    stated: Mapping[str, Config]  # by the keys of CARRIED


@dataclass(frozen=True, slots=True)
class _Job:
    """One part."""

    source: Path
    target: Path
    wish: Wish
    stated: Mapping[str, Config] | None = None  # beside its configuration; None is what its own whole model says


def convert(source: Path, target: Path, wish: Wish, infer: Infer, on_bytes: OnBytes) -> list[Path]:
    """Write one part, or each part of a whole model, and return what was written.

    Raises CheckpointError on a source that cannot be read; ConfigurationError on a type that the format does not have,
    on a target that exists, and when writing fails.
    """
    wish = replace(wish, type=settled_type(wish.to, wish.type))
    target = target.resolve() if target.name in ("", "..") else target  # a name is needed to write beside it
    whole = _whole(source, wish.variant)
    if whole and target.suffix.lower() in SUFFIXES:
        raise ConfigurationError(
            f"{source} is a whole model; accepted: one part of it, or a folder instead of {target}"
        )
    jobs = _parts(whole, target, wish) if whole else [_Job(source, target, wish)]
    small = _small(whole, target, wish.to) if whole and source.resolve() != target.resolve() else {}
    for job in jobs:
        renewed = ["config.json", *(file.name for file in _companions(job.source))]
        check_free(job.target, wish.force, job.wish.to is Format.DIFFUSERS, renewed)
    for path, file in small.items():
        if not (path.is_file() and path.read_bytes() == file.read_bytes()):
            check_free(path, wish.force, is_folder=False)
    for job in jobs:
        _convert(job, infer, on_bytes)
    for path, file in small.items():
        copying(file, path)
    if whole and wish.to is not Format.COMFY:
        _write_stated(whole, target)
    return [job.target for job in jobs]


def format_of(target: Path) -> Format:
    """The format that a target's name asks for."""
    return SUFFIXES.get(target.suffix.lower(), Format.DIFFUSERS)


def _whole(source: Path, variant: Variant | None) -> _Whole | None:
    """What of a whole model there is; None: it is a part."""
    is_comfy = source.is_dir() and root_of(source) is not None
    if variant is not None and not is_comfy:
        raise ConfigurationError(f"variant is {variant}, and {source} is no ComfyUI models folder; accepted: none")
    if source.is_dir() and (source / WHOLE).is_file():
        parts = {name: source / name for name in (each.name for each in WRITTEN) if (source / name).is_dir()}
        found = {key: read_json(source / name) for key, name in CARRIED.items() if (source / name).is_file()}
        return _Whole(source.resolve().name, parts, _small_in(source), found)
    if not is_comfy:
        return None
    parts = parts_in(source, variant, {}, whole=False)  # the official folders have no Llama
    tokenizers = parts.pop(TOKENIZERS, None)
    stated: Mapping[str, Config] = {
        "model_index": {
            "_class_name": "HiDreamImagePipeline",
            **{part.name: (part.library, part.classes[0]) for part in WRITTEN},
        },
        **_carried(parts["transformer"]),
    }
    return _Whole(parts["transformer"].stem, parts, _small_in(tokenizers) if tokenizers else {}, stated)


def _carried(part: Path) -> Mapping[str, Config]:
    """What a transformer's metadata, or the folder of the whole model that it is a part of, says of that model."""
    found = {key: stated_as(key, part) for key in CARRIED}
    beside = {key: part.parent / name for key, name in CARRIED.items() if part.is_dir()}
    read = {key: read_json(file) for key, file in beside.items() if file.is_file()}
    return read | {key: value for key, value in found.items() if value is not None}


def _parts(whole: _Whole, target: Path, wish: Wish) -> list[_Job]:
    """Every part that a whole model has: only a transformer becomes GGUF, only large parts get under 16 bits."""
    jobs = []
    for name, source in whole.parts.items():
        own, path = wish, target / name
        if wish.to is Format.COMFY:
            path = target / PARTS[name].comfy_file.format(whole.name)
            own = wish if PARTS[name].large or wish.type in PLAIN else replace(wish, type=None)
        elif wish.to is Format.GGUF and name == "transformer":
            path = target / name / "transformer.gguf"
        elif wish.to is Format.GGUF:
            own = replace(wish, to=Format.DIFFUSERS, type=None)
        in_files = name == "transformer" and wish.to is not Format.DIFFUSERS  # else it stands in files of its own
        jobs.append(_Job(source, path, own, whole.stated if in_files else {}))
    return jobs


def _convert(job: _Job, infer: Infer, on_bytes: OnBytes) -> None:
    published = read(job.source)
    config = _config(published)
    stated = {**({"config": config} if config else {}), **_of_whole(job, published.kind)}
    with appearing(job.target) as path:
        write(path, published, stated, job.wish, infer, lambda *count: on_bytes(job.target, *count))
        if job.wish.to is Format.DIFFUSERS:
            for file in _companions(job.source):
                shutil.copyfile(file, path / file.name)


def _of_whole(job: _Job, kind: Kind) -> Mapping[str, Config]:
    """What a transformer's files have to say of the whole model."""
    if job.stated is None:
        return _carried(job.source) if kind is Kind.TRANSFORMER else {}
    return job.stated


def _config(published: Published) -> Config | None:
    """What a part says of itself, but for how it was quantised; what lies beside a file may be another part's."""
    stated = config_of(published.path)
    if stated is None:
        return None
    if published.path.is_file() and not class_in(stated).startswith(_family(published.kind)):
        return None
    return {key: value for key, value in stated.items() if key != "quantization_config"}


def _companions(part: Path) -> list[Path]:
    """Small files beside a part's weights, but for its configuration and its index of shards."""
    if not part.is_dir():
        return []
    found = (file for file in part.iterdir() if file.is_file() and file.suffix in COMPANIONS)
    return sorted(file for file in found if file.name != "config.json" and not file.name.endswith(".index.json"))


def _small_in(folder: Path) -> dict[str, Path]:
    """Small files one folder further down, by their paths from here."""
    files = (file for file in sorted(folder.glob("*/*")) if file.is_file() and file.suffix in COMPANIONS)
    return {str(file.relative_to(folder)): file for file in files if not file.name.endswith(".index.json")}


def _small(whole: _Whole, target: Path, to: Format) -> dict[Path, Path]:
    """Small files that are copied because no part brings them along: where to, and where from."""
    if to is Format.COMFY:
        return {target / TOKENIZERS / name: file for name, file in whole.small.items() if name.startswith("tokenizer")}
    written = PARTS.keys() - ({TRANSFORMER.name} if to is Format.GGUF else set())
    stated = CARRIED.values()
    return {
        target / name: file
        for name, file in whole.small.items()
        if file.parent.name not in written and name not in stated
    }


def _write_stated(whole: _Whole, target: Path) -> None:
    """Write what makes a folder whole, at the very end: one that is torn is not to be taken for it."""
    for key in reversed(CARRIED):
        if key in whole.stated:
            with appearing(target / CARRIED[key]) as path:
                path.write_text(json.dumps(whole.stated[key], indent=2) + "\n")


def _family(kind: Kind) -> str:
    """How the class begins that the configuration of such a part names."""
    return next(part.family for part in WRITTEN if part.kind is kind)
