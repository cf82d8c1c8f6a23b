"""`hidream inspect`: how an image of hidream was made, from the file and from the manifest of its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hidream.commands import manifest
from hidream.commands.grammar import Command, Given
from hidream.commands.printing import json_line
from hidream.commands.values import PATH
from hidream.errors import InvalidInput
from hidream.settings.tables import Settings
from hidream.types import Mode, Size, Variant

_ASCII_COMMENT = b"ASCII\0\0\0"


def embedded(path: Path) -> dict[str, Any]:
    """What a file of hidream says about itself: format, size, seed and version. Raises InvalidInput if it is none."""
    from PIL import ExifTags, Image

    try:
        with Image.open(path) as image:
            facts: dict[str, Any] = {"format": str(image.format).lower(), "size": str(Size(*image.size))}
            texts = getattr(image, "text", None) or {}
            if "version" not in texts:
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
                texts = json.loads(comment.removeprefix(_ASCII_COMMENT)) if comment else {}
            ours = texts["Software"] == "hidream" if isinstance(texts, dict) and "Software" in texts else False
            facts |= {"seed": int(texts["seed"]), "version": str(texts["version"])} if ours else {}
    except FileNotFoundError:
        raise InvalidInput(f"{path} does not exist; accepted: an image of hidream") from None
    except Exception as error:  # whatever Pillow or JSON say about the bytes of a stranger
        raise InvalidInput(f"{path} is not an image that can be read; accepted: an image of hidream") from error
    if not ours:
        raise InvalidInput(f"{path} does not say how it was made: not from hidream, or its metadata was removed")
    return facts


def made_with(path: Path) -> dict[str, Any]:
    """`embedded`, with `variant`, `mode` and, if the folder's manifest has the image, all its `parameters`."""
    facts = embedded(path)
    name, _, rest = facts["version"].partition("/")
    variant = name.removeprefix("hidream-i1-")
    facts["variant"] = variant if variant in list(Variant) else None
    words = {part.partition("-")[0] for part in rest.split("/")}
    facts["mode"] = next((str(mode) for mode in Mode if mode in words), None)
    entry = manifest.entry_of(path)
    facts["parameters"] = None if entry is None else entry["parameters"]
    return facts


def _inspect(given: Given, config: Settings) -> int:
    for path in given.files:
        facts = made_with(path)
        if given.json:
            json_line({"file": str(path), **facts})
            continue
        if len(given.files) > 1:
            click.echo(f"{path}:")
        parameters = facts.pop("parameters")
        for name, value in facts.items():
            click.echo(f"{name:10} {'unknown' if value is None else value}")
        for name, value in (parameters or {}).items():
            if name not in facts:
                click.echo(f"{name:10} {value if isinstance(value, str) else json.dumps(value)}")
        if parameters is None:
            click.echo(f"{'prompt':10} not in the file, and no {manifest.NAME} beside it has it")
    return 0


INSPECT = Command(
    _inspect,
    [click.Argument(["files"], nargs=-1, required=True, type=PATH, metavar="FILE...")],
    details="A file carries seed and version, not the prompt. If it lies in a folder of `hidream generate`, the "
    "manifest of the folder has all parameters.",
    examples=["hidream inspect out.png", "hidream inspect out/*.png --json"],
)
