"""Published files from one format and type into another: what `hidream convert` does.

    source: anything that `detect.read` opens, or a whole folder of the diffusers layout, part by part
    target: a folder of one part for diffusers, a ComfyUI file, a GGUF file (`targets.py`), or a folder of all parts

One tensor at a time is in memory, beside the mapped pages of the source, which the system takes back when it wants.
What HiDream-I1 has no use for (Llama's head, T5's decoder) is left out. Files appear whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hidream.errors import ConfigurationError
from hidream.formats.detect import Kind, Published, config_of, read
from hidream.formats.retype import PLAIN
from hidream.formats.targets import Config, Format, Infer, Wish, settled_type, write
from hidream.formats.whole_files import appearing, check_free, copying

OnBytes = Callable[[Path, int, int], None]
"""Is told what is being written, and how many bytes, of how many, have been dealt with."""

SUFFIXES = {".gguf": Format.GGUF, ".safetensors": Format.COMFY}
"""What the name of a file says; any other is a folder's."""
WHOLE = "model_index.json"
"""Makes a folder a whole model."""
CLASSES = {
    Kind.TRANSFORMER: "HiDreamImageTransformer2DModel",
    Kind.CLIP: "CLIPText",
    Kind.T5: "T5",
    Kind.LLAMA: "Llama",
    Kind.VAE: "Autoencoder",
}
"""How the class begins that a part's configuration names."""
COMFY_PLACES = {
    "transformer": "diffusion_models/{}.safetensors",
    "text_encoder": "text_encoders/clip_l_hidream.safetensors",
    "text_encoder_2": "text_encoders/clip_g_hidream.safetensors",
    "text_encoder_3": "text_encoders/t5xxl.safetensors",
    "text_encoder_4": "text_encoders/llama_3.1_8b_instruct.safetensors",
    "vae": "vae/ae.safetensors",
}
"""The parts of a whole folder with weights, and where ComfyUI looks for them."""
LARGE = ("transformer", "text_encoder_3", "text_encoder_4")
"""Parts that are worth fewer than 16 bits."""
COMPANIONS = (".json", ".model", ".txt", ".jinja")
"""Endings of small files beside weights, such as a tokenizer's."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One part."""

    source: Path
    target: Path
    wish: Wish


def convert(source: Path, target: Path, wish: Wish, infer: Infer, on_bytes: OnBytes) -> list[Path]:
    """Write one part, or each part of a whole folder, and return what was written.

    Raises CheckpointError on a source that cannot be read; ConfigurationError on a type that the format does not have,
    on a target that exists, and when writing fails.
    """
    wish = replace(wish, type=settled_type(wish.to, wish.type))
    target = target.resolve() if target.name in ("", "..") else target  # a name is needed to write beside it
    is_whole = source.is_dir() and (source / WHOLE).is_file()
    if is_whole and target.suffix.lower() in SUFFIXES:
        raise ConfigurationError(
            f"{source} is a whole model; accepted: one part of it, or a folder instead of {target}"
        )
    jobs = _parts(source, target, wish) if is_whole else [_Job(source, target, wish)]
    for job in jobs:
        renewed = ["config.json", *(file.name for file in _companions(job.source))]
        check_free(job.target, wish.force, job.wish.to is Format.DIFFUSERS, renewed)
    for job in jobs:
        _convert(job, infer, on_bytes)
    if is_whole and wish.to is not Format.COMFY and source.resolve() != target.resolve():
        _copy_the_rest(source, target, wish.to)
    return [job.target for job in jobs]


def format_of(target: Path) -> Format:
    """The format that a target's name asks for."""
    return SUFFIXES.get(target.suffix.lower(), Format.DIFFUSERS)


def _parts(source: Path, target: Path, wish: Wish) -> list[_Job]:
    """Every part that a whole folder has: only a transformer becomes GGUF, only large parts get under 16 bits."""
    jobs = []
    for name, place in COMFY_PLACES.items():
        if not (source / name).is_dir():
            continue
        own, path = wish, target / name
        if wish.to is Format.COMFY:
            path = target / place.format(source.resolve().name)
            own = wish if name in LARGE or wish.type in PLAIN else replace(wish, type=None)
        elif wish.to is Format.GGUF and name == "transformer":
            path = target / name / "transformer.gguf"
        elif wish.to is Format.GGUF:
            own = replace(wish, to=Format.DIFFUSERS, type=None)
        jobs.append(_Job(source / name, path, own))
    return jobs


def _convert(job: _Job, infer: Infer, on_bytes: OnBytes) -> None:
    published = read(job.source)
    with appearing(job.target) as path:
        write(path, published, _config(published), job.wish, infer, lambda *count: on_bytes(job.target, *count))
        if job.wish.to is Format.DIFFUSERS:
            for file in _companions(job.source):
                shutil.copyfile(file, path / file.name)


def _config(published: Published) -> Config | None:
    """What a part says of itself, but for how it was quantised; what lies beside a file may be another part's."""
    stated = config_of(published.path)
    if stated is None:
        return None
    named = str(stated.get("_class_name") or (stated.get("architectures") or [""])[0])
    if published.path.is_file() and not named.startswith(CLASSES[published.kind]):
        return None
    return {key: value for key, value in stated.items() if key != "quantization_config"}


def _companions(part: Path) -> list[Path]:
    """Small files beside a part's weights, but for its configuration and its index of shards."""
    if not part.is_dir():
        return []
    found = (file for file in part.iterdir() if file.is_file() and file.suffix in COMPANIONS)
    return sorted(file for file in found if file.name != "config.json" and not file.name.endswith(".index.json"))


def _copy_the_rest(source: Path, target: Path, to: Format) -> None:
    """Copy what has no weights, and last what makes a folder whole: one that is torn is not to be taken for it."""
    written = COMFY_PLACES.keys() - ({"transformer"} if to is Format.GGUF else set())
    for file in sorted(source.glob("*/*")):
        is_small = file.is_file() and file.suffix in COMPANIONS and not file.name.endswith(".index.json")
        if is_small and file.parent.name not in written:
            copying(file, target / file.parent.name / file.name)
    copying(source / WHOLE, target / WHOLE)
