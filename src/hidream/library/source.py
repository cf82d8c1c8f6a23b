"""From the arguments of `Pipeline.from_pretrained` to a checkpoint and its variant.

A model is nothing (nano, inside this package), a path in any format of docs/MODELS.md, or a Hub id, which is looked up
in the Hub's cache. Only `local_files_only=False` downloads. Which variant it is, say the published scheduler of a
folder, or else the name; a name that is given must not contradict them.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypedDict

from hidream.errors import ConfigurationError, InvalidInput
from hidream.formats.comfy_folder import parts_in
from hidream.formats.detect import read_json
from hidream.keywords import check_names
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded
from hidream.parameter import Choice, in_words
from hidream.parts import NAMED_ALONE, TRANSFORMER
from hidream.types import SAMPLING_PRESETS, Sampler, Variant

PathOrId: TypeAlias = "str | os.PathLike[str]"
"""A file, a folder, or a Hub id."""


class Parts(TypedDict, total=False):
    """Parts that a checkpoint lacks, or that replace its own; a test compares the names with `parts.NAMED_ALONE`."""

    llama: PathOrId | None
    t5: PathOrId | None
    clip_l: PathOrId | None
    clip_g: PathOrId | None
    vae: PathOrId | None
    tokenizers: PathOrId | None


PART_NAMES = (*(part.setting for part in NAMED_ALONE), "tokenizers")
ACCEPTED = 'a Hub id such as "HiDream-ai/HiDream-I1-Dev", a folder, a file, or None for nano'
CALLED_ELSEWHERE = {
    "torch_dtype": "dtype",
    "device_map": "device",
    "memory_gb": "memory",
    "max_memory": "memory",
    "download": "local_files_only=False",
    "text_encoder": "clip_l",
    "text_encoder_2": "clip_g",
    "text_encoder_3": "t5",
    "text_encoder_4": "llama",
    "lora": "loras",
    "use_auth_token": "token",
    "quantization": "storage",
    "quantization_config": "storage",
    "weight_format": "storage",
}
"""What diffusers and the settings call the arguments: for errors about unknown names."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@.+)?", re.ASCII)  # the Hub's, and a revision
_UNIPC = ("UniPCMultistepScheduler", "FlowUniPCMultistepScheduler")
_FLASH = ("FlowMatchLCMScheduler", "FlashFlowMatchEulerDiscreteScheduler")
_SCHEDULERS = {Sampler.UNIPC: _UNIPC, Sampler.FLASH: _FLASH}
"""The classes of diffusers and of the official code with which the variants are published."""


@dataclass(frozen=True, slots=True)
class Hub:
    """How Hub ids are looked up: `revision` is the model's; `token` is for downloads."""

    revision: str | None = None
    token: str | None = None
    local_files_only: bool = True

    def locate(self, named: Mapping[str, Path], ids: Collection[str]) -> dict[str, Path]:
        """Replace the ids among some paths by the folders of the cache, after a download if that is wanted.

        With an official repository comes the Llama of the cache. Raises CheckpointError with what the cache lacks and
        how to download it, or HubError.
        """
        from hidream.hub.locate import parts

        if not ids:
            self._check_unused()
            return parts(named)
        if self.revision is not None:
            if "folder" not in ids:
                raise InvalidInput(f"revision is {self.revision!r:.100}, and model is no Hub id", field="revision")
            named = {**named, "folder": Path(f"{named['folder'].as_posix()}@{self.revision}")}
        if self.token is not None and self.local_files_only:
            accepted = "accepted: a token with local_files_only=False"
            raise InvalidInput(f"token is given, and nothing is downloaded; {accepted}", field="token")
        if not self.local_files_only:
            for name in ids:
                self._download(named[name].as_posix())
        return parts(named)

    def _download(self, model: str) -> None:
        from hidream.hub import names, pull

        plan = pull.plan(names.parse(model), token=self.token)
        pull.check(plan, self.token)
        pull.pull(plan, lambda _bytes: None, self.token)

    def _check_unused(self) -> None:
        """Refuse what is only said to the Hub where nothing comes from there."""
        given = {"revision": self.revision is not None, "token": self.token is not None}
        given["local_files_only"] = not self.local_files_only
        name = next((name for name, is_given in given.items() if is_given), None)
        if name is not None:
            raise InvalidInput(f"{name} is given, and nothing is named by a Hub id; accepted: with one", field=name)


def find(
    model: PathOrId | None, variant: Variant | str | None, parts: Mapping[str, PathOrId | None], hub: Hub
) -> tuple[Variant, Checkpoint]:
    """Find the checkpoint, with all parts named that are named, and settle its variant.

    Raises InvalidInput on arguments that are unknown, contradict each other or leave the variant open, and
    ConfigurationError where a file cannot be read.
    """
    check_names(parts, PART_NAMES, CALLED_ELSEWHERE)
    settled = None if variant is None else Variant(Choice(Variant).read("variant", variant))
    named, ids = {}, set()
    for field, given in {"folder": model, **parts}.items():
        if given is not None:
            named[field], of_hub = _path("model" if field == "folder" else field, given)
            ids |= {field} if of_hub else set()
    found = hub.locate(named, ids)
    if model is None:
        settled = settled or Variant.DEV
        return settled, dataclasses.replace(embedded(settled), **found)
    name = str(model).partition("@")[0] if "folder" in ids else str(named["folder"].absolute())
    return _settled(settled, variant_of(found["folder"], name, settled), name), Checkpoint(**found)


def _path(field: str, given: object) -> tuple[Path, bool]:
    """Read a path, or a Hub id as one, and whether it is an id. Raises InvalidInput."""
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise InvalidInput(f"{field} is {given!r:.100}; accepted: {ACCEPTED}", field=field)
    path = Path(os.path.expanduser(given))  # noqa: PTH111 - it leaves a "~" without a home as it is
    if isinstance(given, os.PathLike) or os.path.exists(path):  # noqa: PTH110 - unlike Path's it answers anywhere
        return path, False
    if not _HUB_ID.fullmatch(given):
        raise InvalidInput(f"{field} is {given!r:.100}, which does not exist; accepted: {ACCEPTED}", field=field)
    return path, True


def variant_of(path: Path, name: str, named: Variant | None) -> Variant | None:
    """Tell the variant of a checkpoint: from its scheduler, else its name, else the name of its transformer's file.

    In a ComfyUI folder with several transformers, `named` chooses one. Raises CheckpointError if there is no choice.
    """
    if path.name == TRANSFORMER.name:  # one part of a folder
        path, name = path.parent, str(Path(name).parent)
    file = path / "scheduler" / "scheduler_config.json"
    if file.is_file() and (found := _of_scheduler(read_json(file))) is not None:
        return found
    words = _words(Path(name).stem if path.is_file() else Path(name).name)
    if path.is_dir() and words is None:
        transformer = parts_in(path, named, {}, complete=False).get(TRANSFORMER.name)
        return None if transformer is None else _words(transformer.stem)
    return words


def _of_scheduler(config: Mapping[str, object]) -> Variant | None:
    """The variant that is published with this scheduler; None if none or several are."""
    shift = config.get("flow_shift", config.get("shift"))
    kind = config.get("_class_name")
    fits = [v for v, preset in SAMPLING_PRESETS.items() if kind in _SCHEDULERS[preset.sampler]]
    fits = fits if len(fits) == 1 else [v for v in fits if SAMPLING_PRESETS[v].shift == shift]
    return fits[0] if len(fits) == 1 else None


def _words(name: str) -> Variant | None:
    """The variant that a name says, if it says one."""
    said = set(re.split(r"[^a-z0-9]+", name.lower())) & set(Variant)
    return Variant(said.pop()) if len(said) == 1 else None


def _settled(named: Variant | None, told: Variant | None, name: str) -> Variant:
    if named is None and told is None:
        raise InvalidInput(
            f"variant is not given, and neither a scheduler nor the name of {name!r} says it; "
            f"accepted: variant={in_words(map(repr, map(str, Variant)), 'or')}",
            field="variant",
        )
    if named is not None and told is not None and named is not told:
        raise InvalidInput(
            f"variant is {str(named)!r}, and {name!r} is {told}, by its scheduler or its name; "
            f"accepted: variant={str(told)!r}, or none",
            field="variant",
        )
    return named or told or Variant.DEV


def memory_gb(memory: float | str | None) -> float:
    """Read the memory of the device that may be used: a number of GB, or a text such as "12GB"; None is all of it.

    Returns GB (10^9 bytes), 0 for all. Raises InvalidInput.
    """
    if memory is None:
        return 0.0
    text = memory.strip() if isinstance(memory, str) else f"{memory}"
    match = re.fullmatch(r"(\d{1,6}(?:\.\d*)?) ?(gib|gb|g)?", text.lower(), re.ASCII)
    gb = 0.0 if match is None or isinstance(memory, bool) else float(match[1])
    gb = gb * 2**30 / 1e9 if match is not None and match[2] == "gib" else gb
    if not gb:
        raise InvalidInput(f'memory is {memory!r:.100}; accepted: GB, such as 12 or "12GB", or None', field="memory")
    return gb


def lora_folder(loras: str | os.PathLike[str] | None) -> Path | None:
    """Read the folder of LoRAs. Raises ConfigurationError if it is none."""
    if loras is None:
        return None
    folder = Path(os.path.expanduser(loras))  # noqa: PTH111 - it leaves a "~" without a home as it is
    if folder.is_file():
        raise ConfigurationError(
            f"loras is {str(loras)!r:.100}, which is a file; accepted: the folder with it, and loras="
            f"{folder.name.partition('.')[0]!r} in a call"
        )
    return folder
