"""From the keywords of a call to an `ImageRequest`.

`keywords` reads the values. This file adds what only the library has: prompts for single text encoders, images in
memory, files of LoRAs, and the checks that a server makes elsewhere.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hidream.errors import InvalidInput, MissingInput
from hidream.keywords import FILES, OF_PIPELINE
from hidream.parameter import Text
from hidream.request import BY_NAME, MASK_ALONE, ImageRequest, Prompts, random_seed
from hidream.safety import prompt as prompt_check
from hidream.types import DEFAULT_SIZE, PROMPT_MAX_CHARS, Mode, Size, Variant

LORA_ENDING = ".safetensors"
_PROMPT = BY_NAME["prompt"].kind
_ENCODERS_PROMPT = Text(PROMPT_MAX_CHARS)


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """Reads the requests for one model: its variant, the default mode, and the folder of its LoRAs."""

    variant: Variant
    mode: Mode = Mode.EXACT
    lora_folder: Path | None = None

    def read(self, prompt: object, options: Mapping[str, Any]) -> ImageRequest:
        """Read a request. Raises InvalidInput, MissingInput without a prompt, or PromptRefused (docs/SAFETY.md)."""
        given = OF_PIPELINE.read(options, self._lora_name)
        files = {name: _file(name, given.pop(name, None)) for name in FILES}
        if files["mask"] is not None and files["image"] is None:
            raise MissingInput(MASK_ALONE, field="mask")
        values: dict[str, Any] = {"mode": self.mode, "prompt": _prompt(prompt), **files}
        values |= {BY_NAME[name].attribute: value for name, value in given.items()}
        if "size" not in values:
            values["size"] = _default_size(files["image"])
        if values.get("seed", -1) == -1:
            values["seed"] = random_seed()
        request = ImageRequest(**values)
        self._check_guidance(request)
        _check_safety(request)
        return request

    def _check_guidance(self, request: ImageRequest) -> None:
        """Refuse what a distilled variant does not use. The API accepts it, for clients that were made for others."""
        if self.variant.guided:
            return
        cure = f"and hidream-i1-{self.variant} was distilled to do without guidance; accepted:"
        if request.guidance is not None and request.guidance > 1:
            shown = f"guidance_scale is {request.guidance:g}"
            raise InvalidInput(f"{shown}, {cure} up to 1, or the variant full", field="guidance_scale")
        if request.negative_prompt:
            shown = f"negative_prompt is {request.negative_prompt!r:.100}"
            raise InvalidInput(f"{shown}, {cure} none, or the variant full", field="negative_prompt")

    def _lora_name(self, given: object) -> object:
        """Return the name of a LoRA; of a file in the model's folder its name there."""
        if not isinstance(given, os.PathLike) and not (isinstance(given, str) and given.endswith(LORA_ENDING)):
            return given
        file = Path(os.path.expanduser(given))  # noqa: PTH111 - it leaves a "~" without a home as it is
        beside = self.lora_folder is not None and file.parent.resolve() == self.lora_folder.resolve()
        if not beside or file.suffix != LORA_ENDING:
            folder = self.lora_folder or "none was given"
            raise InvalidInput(
                f"loras names the file {str(given)!r:.100}; accepted: the name, without {LORA_ENDING}, of a file in "
                f"the folder of `from_pretrained(loras=...)` ({folder})",
                field="loras",
            )
        return file.name.removesuffix(LORA_ENDING)


def _prompt(value: object) -> str | Prompts:
    if not isinstance(value, Prompts):
        return _PROMPT.read("prompt", value)  # type: ignore[no-any-return]
    _PROMPT.read("prompt", value.prompt)
    for field in dataclasses.fields(value):
        text = getattr(value, field.name)
        if text is not None and field.name != "prompt":
            _ENCODERS_PROMPT.read(f"prompt.{field.name}", text)
    return value


def _check_safety(request: ImageRequest) -> None:
    """Raise PromptRefused if the prompt, or that of a single text encoder, must not be used."""
    texts = [request.prompt] if isinstance(request.prompt, str) else [request.prompt.prompt, *request.prompt.each]
    for text in dict.fromkeys(texts):
        prompt_check.check(text, request.negative_prompt, enabled=request.enable_safety_checker)


def _file(name: str, given: object) -> bytes | None:
    if given is None:
        return None
    from hidream.images.in_memory import file_bytes

    return file_bytes(name, given)


def _default_size(image: bytes | None) -> Size:
    """The size of the init image, as near as it may be."""
    if image is None:
        return DEFAULT_SIZE
    from hidream.images.measure import oriented_size

    return Size.near(*oriented_size("image", image))
