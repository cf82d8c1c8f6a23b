"""From the keywords of a call to an `ImageRequest`.

Values are read as the API reads them (`parameter.Kind.read`), so that bounds and messages are the same. This file adds
the forms that only Python has: sizes as tuples, images in memory, short forms of LoRAs, numbers of NumPy.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hidream import keywords
from hidream.errors import InvalidInput, MissingInput
from hidream.parameter import Integer, Number, Text, refused
from hidream.request import BY_NAME, MASK_ALONE, ImageRequest, LoraUse, Prompts, random_seed
from hidream.safety import prompt as prompt_check
from hidream.types import DEFAULT_SIZE, PROMPT_MAX_CHARS, Mode, Size, Variant

LORA_ENDING = ".safetensors"
_READ_SEPARATELY = ("size", "image", "mask", "loras")
_PROMPT = BY_NAME["prompt"].kind
_ENCODERS_PROMPT = Text(PROMPT_MAX_CHARS)
_SIZE_ACCEPTED = 'a text such as "1024x1024", or (width, height)'
_LORA_ACCEPTED = '"name", ("name", 0.8), {"name": 0.8}, or a list of these'


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """Reads the requests for one model: its variant, the default mode, and the folder of its LoRAs."""

    variant: Variant
    mode: Mode = Mode.EXACT
    lora_folder: Path | None = None

    def read(self, prompt: object, options: Mapping[str, Any]) -> ImageRequest:
        """Read a request. Raises InvalidInput, MissingInput without a prompt, or PromptRefused (docs/SAFETY.md)."""
        keywords.check_names(options)
        given = {name: value for name, value in options.items() if value is not None}
        values: dict[str, Any] = {"mode": self.mode}
        for parameter in keywords.parameters():
            if parameter.name in given and parameter.name not in _READ_SEPARATELY:
                kind, value = parameter.kind, given[parameter.name]
                value = _plain(value) if isinstance(kind, Integer | Number) else value
                values[parameter.attribute] = kind.read(parameter.name, value)
        image, mask = (_file(given, name) for name in ("image", "mask"))
        if mask is not None and image is None:
            raise MissingInput(MASK_ALONE, field="mask")
        values |= {"prompt": _prompt(prompt), "size": _size(given, image), "image": image, "mask": mask}
        values["loras"] = self._loras(given.get("loras", ()))
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

    def _loras(self, value: object) -> tuple[LoraUse, ...]:
        uses = [use for entry in _entries(value) for use in self._lora(entry)]
        read: tuple[LoraUse, ...] = BY_NAME["loras"].kind.read("loras", uses)
        return read

    def _lora(self, entry: object) -> Iterator[object]:
        """Yield the API's form of an entry, {"name", "scale"}."""
        match entry:
            case LoraUse(name, weight) | (str() | os.PathLike() as name, weight):
                yield {"name": self._lora_name(name), "scale": _plain(weight)}
            case str() | os.PathLike():
                yield {"name": self._lora_name(entry)}
            case {"name": str()} | {"path": str()}:
                yield entry
            case Mapping():
                for name, weight in entry.items():
                    yield {"name": self._lora_name(name), "scale": _plain(weight)}
            case _:
                raise refused("loras", entry, _LORA_ACCEPTED)

    def _lora_name(self, given: object) -> object:
        """Return the name of a LoRA; of a file in the model's folder its name there."""
        if not isinstance(given, os.PathLike) and not (isinstance(given, str) and given.endswith(LORA_ENDING)):
            return given
        file = Path(given).expanduser()
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


def _file(given: Mapping[str, Any], name: str) -> bytes | None:
    if name not in given:
        return None
    from hidream.images.in_memory import file_bytes

    return file_bytes(name, given[name])


def _size(given: Mapping[str, Any], image: bytes | None) -> Size:
    sides = [name for name in keywords.SIDES if name in given]
    if sides and "size" in given:
        raise InvalidInput(f"size and {sides[0]} are given; accepted: one of the two", field="size")
    if len(sides) == 1:
        (missing,) = set(keywords.SIDES) - set(sides)
        raise MissingInput(f"{missing} is absent; accepted: width and height together, or size", field=missing)
    if sides:
        return Size(*(keywords.SIDE.read(name, _plain(given[name])) for name in keywords.SIDES))
    if "size" in given:
        return _read_size(given["size"])
    if image is None:
        return DEFAULT_SIZE
    from hidream.images.measure import oriented_size

    return Size.near(*oriented_size("image", image))


def _read_size(value: object) -> Size:
    match value:
        case Size(width, height) | (width, height):
            sides = [_plain(side) for side in (width, height)]
            if not all(type(side) is int for side in sides):
                raise refused("size", value, _SIZE_ACCEPTED)
            value = "{}*{}".format(*sides)
        case str():
            pass
        case _:
            raise refused("size", value, _SIZE_ACCEPTED)
    return BY_NAME["size"].kind.read("size", value)  # type: ignore[no-any-return]


def _entries(value: object) -> Sequence[object]:
    """The LoRAs in a list or a tuple; but ("name", 0.8) is one."""
    is_one = isinstance(value, tuple) and len(value) == 2 and isinstance(_plain(value[1]), int | float)
    return value if isinstance(value, list | tuple) and not is_one else [value]


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever was given
    """Turn a number of NumPy or torch into Python's."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
