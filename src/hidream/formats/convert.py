"""Conversion of published files from one format and type to another: `hidream convert`.

    source: anything that `detect.read` opens, or a whole model, part by part: a folder of diffusers or of ComfyUI
    target: a folder of one part for diffusers, a ComfyUI file, a GGUF file (`targets.py`), or a folder of all parts

One tensor at a time is in memory, besides mapped pages of the source, which the system may drop at any time. Parts that
HiDream-I1 does not use (Llama's head, T5's decoder) are left out. Files are written atomically.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hidream.errors import ConfigurationError
from hidream.formats.atomic_files import atomic_copy, atomic_write, check_target
from hidream.formats.comfy_folder import TOKENIZERS, parts_in, root_of
from hidream.formats.detect import Published, class_in, config_of, metadata_object, read, read_json
from hidream.formats.difference import METADATA as DIFFERENCE
from hidream.formats.retype import PLAIN
from hidream.formats.targets import Config, ConversionOptions, Format, Infer, resolve_type, write
from hidream.parts import ENCODERS, PARTS, TRANSFORMER, VAE, Kind
from hidream.types import Variant

OnBytes = Callable[[Path, int, int], None]
"""Called with the target, the bytes that are done, and the bytes in all."""

SUFFIXES = {".gguf": Format.GGUF, ".safetensors": Format.COMFY}
"""The format, by the suffix of the target; any other name is that of a folder."""
MODEL_INDEX = "model_index.json"
"""The file that makes a diffusers folder a complete model."""
MODEL_FILES = {"model_index": MODEL_INDEX, "scheduler": "scheduler/scheduler_config.json"}
"""What else describes a complete model: keys in the metadata of a transformer's file, files in a diffusers folder."""
MODEL_PARTS = (TRANSFORMER, *ENCODERS, VAE)
"""The parts of a complete model, in the order in which they are written."""
SMALL_FILE_SUFFIXES = (".json", ".model", ".txt", ".jinja")
"""Suffixes of small files beside weights, such as a tokenizer's."""


@dataclass(frozen=True, slots=True)
class _FullModel:
    """A whole model, in either layout."""

    name: str
    parts: dict[str, Path]
    small_files: dict[str, Path]  # files without weights, by their paths in a folder of diffusers
    configs: Mapping[str, Config]  # by the keys of MODEL_FILES


@dataclass(frozen=True, slots=True)
class _Job:
    """One part."""

    source: Path
    target: Path
    options: ConversionOptions
    configs: Mapping[str, Config] | None = None  # beside its configuration; None is what its own whole model says


def convert(source: Path, target: Path, options: ConversionOptions, infer: Infer, on_bytes: OnBytes) -> list[Path]:
    """Write one part, or each part of a whole model, and return what was written.

    Raises CheckpointError on a source that cannot be read; ConfigurationError on a type that the format does not have,
    on a target that exists, and when writing fails.
    """
    options = replace(options, type=resolve_type(options.to, options.type))
    target = target.resolve() if target.name in ("", "..") else target  # a name is needed to write beside it
    model = _full_model(source, options.variant)
    if model and target.suffix.lower() in SUFFIXES:
        raise ConfigurationError(
            f"{source} is a whole model; accepted: one part of it, or a folder instead of {target}"
        )
    jobs = _parts(model, target, options) if model else [_Job(source, target, options)]
    small_files = _files_to_copy(model, target, options.to) if model and source.resolve() != target.resolve() else {}
    for job in jobs:
        renewed = ["config.json", *(file.name for file in _small_files_beside(job.source))]
        check_target(job.target, options.force, job.options.to is Format.DIFFUSERS, renewed)
    for path, file in small_files.items():
        if not (path.is_file() and path.read_bytes() == file.read_bytes()):
            check_target(path, options.force, is_folder=False)
    for job in jobs:
        _convert(job, infer, on_bytes)
    for path, file in small_files.items():
        atomic_copy(file, path)
    if model and options.to is not Format.COMFY:
        _write_model_files(model, target)
    return [job.target for job in jobs]


@contextmanager
def stock_folder(part: Path, infer: Infer) -> Iterator[Path]:
    """The folder of a part as diffusers reads it: a temporary copy where it holds a difference, else the same.

    Raises CheckpointError on a part that cannot be read.
    """
    if metadata_object(DIFFERENCE, part) is None:
        yield part
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:  # Windows deletes no mapped file
        whole = Path(made) / part.name
        convert(part, whole, ConversionOptions(Format.DIFFUSERS), infer, lambda *_: None)
        yield whole


def format_of(target: Path) -> Format:
    """The format that a target's name implies."""
    return SUFFIXES.get(target.suffix.lower(), Format.DIFFUSERS)


def _full_model(source: Path, variant: Variant | None) -> _FullModel | None:
    """Find the parts of a complete model; None if the source is a single part."""
    is_comfy = source.is_dir() and root_of(source) is not None
    if variant is not None and not is_comfy:
        raise ConfigurationError(
            f"variant is {variant}, and {source} is not a ComfyUI models folder; accepted: no variant"
        )
    if source.is_dir() and (source / MODEL_INDEX).is_file():
        parts = {name: source / name for name in (each.name for each in MODEL_PARTS) if (source / name).is_dir()}
        found = {key: read_json(source / name) for key, name in MODEL_FILES.items() if (source / name).is_file()}
        return _FullModel(source.resolve().name, parts, _small_files_in(source), found)
    if not is_comfy:
        return None
    parts = parts_in(source, variant, {}, complete=False)  # the official folders have no Llama
    tokenizers = parts.pop(TOKENIZERS, None)
    configs: Mapping[str, Config] = {
        "model_index": {
            "_class_name": "HiDreamImagePipeline",
            **{part.name: (part.library, part.classes[0]) for part in MODEL_PARTS},
        },
        **_model_configs(parts["transformer"]),
    }
    return _FullModel(parts["transformer"].stem, parts, _small_files_in(tokenizers) if tokenizers else {}, configs)


def _model_configs(part: Path) -> Mapping[str, Config]:
    """The configurations of the complete model, from a transformer's metadata or from the folder it is in."""
    found = {key: metadata_object(key, part) for key in MODEL_FILES}
    beside = {key: part.parent / name for key, name in MODEL_FILES.items() if part.is_dir()}
    read = {key: read_json(file) for key, file in beside.items() if file.is_file()}
    return read | {key: value for key, value in found.items() if value is not None}


def _parts(model: _FullModel, target: Path, options: ConversionOptions) -> list[_Job]:
    """The jobs for all parts of a model: only a transformer becomes GGUF, only large parts get less than 16 bits."""
    jobs = []
    for name, source in model.parts.items():
        own, path = options, target / name
        if options.to is Format.COMFY:
            path = target / PARTS[name].comfy_file.format(model.name)
            own = options if PARTS[name].large or options.type in PLAIN else replace(options, type=None)
        elif options.to is Format.GGUF and name == "transformer":
            path = target / name / "transformer.gguf"
        elif options.to is Format.GGUF:
            own = replace(options, to=Format.DIFFUSERS, type=None)
        in_files = name == "transformer" and options.to is not Format.DIFFUSERS  # else it is in files of its own
        jobs.append(_Job(source, path, own, model.configs if in_files else {}))
    return jobs


def _convert(job: _Job, infer: Infer, on_bytes: OnBytes) -> None:
    published = read(job.source)
    config = _config(published)
    configs = {**({"config": config} if config else {}), **_model_metadata(job, published.kind)}
    with atomic_write(job.target) as path:
        write(path, published, configs, job.options, infer, lambda *count: on_bytes(job.target, *count))
        if job.options.to is Format.DIFFUSERS:
            for file in _small_files_beside(job.source):
                shutil.copyfile(file, path / file.name)


def _model_metadata(job: _Job, kind: Kind) -> Mapping[str, Config]:
    """The metadata about the complete model that a transformer's files get."""
    if job.configs is None:
        return _model_configs(job.source) if kind is Kind.TRANSFORMER else {}
    return job.configs


def _config(published: Published) -> Config | None:
    """A part's own configuration without its quantisation; a config.json beside a file may belong to another part."""
    configs = config_of(published.path)
    if configs is None:
        return None
    if published.path.is_file() and not class_in(configs).startswith(_family(published.kind)):
        return None
    return {key: value for key, value in configs.items() if key != "quantization_config"}


def _small_files_beside(part: Path) -> list[Path]:
    """Small files beside a part's weights, but for its configuration and its index of shards."""
    if not part.is_dir():
        return []
    found = (file for file in part.iterdir() if file.is_file() and file.suffix in SMALL_FILE_SUFFIXES)
    return sorted(file for file in found if file.name != "config.json" and not file.name.endswith(".index.json"))


def _small_files_in(folder: Path) -> dict[str, Path]:
    """Small files one folder further down, by their paths from here."""
    files = (file for file in sorted(folder.glob("*/*")) if file.is_file() and file.suffix in SMALL_FILE_SUFFIXES)
    return {str(file.relative_to(folder)): file for file in files if not file.name.endswith(".index.json")}


def _files_to_copy(model: _FullModel, target: Path, to: Format) -> dict[Path, Path]:
    """Small files that belong to no part and are copied: target to source."""
    if to is Format.COMFY:
        return {
            target / TOKENIZERS / name: file for name, file in model.small_files.items() if name.startswith("tokenizer")
        }
    written = PARTS.keys() - ({TRANSFORMER.name} if to is Format.GGUF else set())
    configs = MODEL_FILES.values()
    return {
        target / name: file
        for name, file in model.small_files.items()
        if file.parent.name not in written and name not in configs
    }


def _write_model_files(model: _FullModel, target: Path) -> None:
    """Write the files that make a folder a complete model, last: an incomplete folder must not look like one."""
    for key in reversed(MODEL_FILES):
        if key in model.configs:
            with atomic_write(target / MODEL_FILES[key]) as path:
                path.write_text(json.dumps(model.configs[key], indent=2) + "\n")


def _family(kind: Kind) -> str:
    """The prefix of the class names in the configuration of such a part."""
    return next(part.family for part in MODEL_PARTS if part.kind is kind)
