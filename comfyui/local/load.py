"""Load HiDream-I1: finds the parts of a model in ComfyUI's folders; it is loaded when another node uses it."""

from __future__ import annotations

from pathlib import Path

from comfy_api.v0_0_2 import io

from . import files
from .types import CATEGORY, HiDreamModel

PARTS = ("llama", "t5", "clip_l", "clip_g", "vae")


class LoadHiDream(io.ComfyNode):
    """Chooses the files of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node, with the files that there are now."""
        parts = [
            io.Combo.Input(
                name,
                options=[files.AUTO, *files.names(name)],
                default=files.AUTO,
                optional=True,
                tooltip="auto: the file that fits, recognised by its tensors; of a folder of diffusers its own",
            )
            for name in PARTS
        ]
        return io.Schema(
            "HidreamLoad",
            display_name="Load HiDream-I1",
            category=CATEGORY,
            description="A HiDream-I1 model from ComfyUI's folders: safetensors in any precision, GGUF, or a folder of "
            "diffusers. It is loaded when it is first used.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=files.models(),
                    tooltip="a transformer in models/diffusion_models, or a folder in models/diffusers",
                ),
                io.Combo.Input(
                    "variant",
                    options=[files.AUTO, "dev", "full", "fast"],
                    default=files.AUTO,
                    tooltip="auto: what the file's name or the folder's scheduler says; dev for nano",
                ),
                io.Combo.Input(
                    "weights",
                    options=[files.AUTO, "compute", "stored", "fp8", "int8", "nf4"],
                    default=files.AUTO,
                    tooltip="how large matrices are kept; auto: the best that fits into the memory",
                ),
                *parts,
            ],
            outputs=[HiDreamModel.Output(display_name="hidream")],
        )

    @classmethod
    def validate_inputs(
        cls,
        model: str,
        llama: str = files.AUTO,
        t5: str = files.AUTO,
        clip_l: str = files.AUTO,
        clip_g: str = files.AUTO,
        vae: str = files.AUTO,
    ) -> bool:
        """Leave the names to `execute`, which says where a file should be; ComfyUI would list all that there are."""
        return True

    @classmethod
    def execute(cls, model: str, variant: str, weights: str, **parts: str) -> io.NodeOutput:
        """Find and open the files, and plan the memory."""
        from .model import open_model

        source = None if model == files.NANO else files.path_of("model", model)
        named = {name: files.path_of(name, choice) for name, choice in parts.items() if choice != files.AUTO}
        if source is not None and source.is_file():
            named = _completed(source, named)
        settled = None if variant == files.AUTO else variant
        return io.NodeOutput(open_model(source, settled, named, weights))


def _completed(transformer: Path, named: dict[str, Path]) -> dict[str, Path]:
    """Find the parts that are not named, beside a transformer, in all of ComfyUI's folders. Raises CheckpointError."""
    from hidream.formats.comfy_folder import encoders_and_vae
    from hidream.parts import PARTS as ALL

    found = dict(named)
    missing = [name for name in PARTS if name not in named]
    if missing:
        among = {path: None for name in missing for path in files.paths(name)}
        fitting = encoders_and_vae(among, transformer)
        parts = {row.setting: row for row in ALL.values()}
        for name in missing:
            found[name] = _only(name, fitting.get(parts[name].name, []), parts[name].title, parts[name].comfy_published)
    tokenizers = files.tokenizers(transformer)
    return found if tokenizers is None else {**found, "tokenizers": tokenizers}


def _only(name: str, fitting: list[Path], title: str, published: str) -> Path:
    from hidream.errors import CheckpointError

    if len(fitting) > 1:
        shown = ", ".join(file.name for file in fitting)
        raise CheckpointError(f"{len(fitting)} files would do for {title}: {shown}; accepted: one, chosen as {name!r}")
    if not fitting:
        raise CheckpointError(
            f"no file is {title} of this model: put {published} of Comfy-Org/HiDream-I1_ComfyUI into "
            f"{files.where(name).removeprefix('a file in ')}, or choose another file as {name!r}"
        )
    return fitting[0]
