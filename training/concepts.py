"""What nano can draw and the words for it: `concepts.toml`, read and checked.

Knows words and numbers only: no images (`sprites.py`), no sentences (`captions.py`). The order of the file is the
order of every tensor's indices.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONCEPTS_FILE = Path(__file__).parent / "concepts.toml"
FILLERS_FILE = Path(__file__).parent / "fillers.toml"


@dataclass(frozen=True, slots=True)
class Object:
    """A thing to draw; `words` are all its names, `code` the hexcode of its image in every set."""

    name: str
    code: str
    words: tuple[str, ...]
    plural: str | None = None
    mass: bool = False


@dataclass(frozen=True, slots=True)
class Style:
    """An image set, where it comes from, and what its style is called before and behind the object."""

    name: str
    package: str
    version: str
    integrity: str
    licence: str
    frame_px: int
    border: float
    adjectives: tuple[str, ...]
    openers: tuple[str, ...]
    closers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Background:
    """A colour (with `rgb`, 0 to 255) or a scene; the first phrase is the plain one."""

    name: str
    phrases: tuple[str, ...]
    rgb: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Fillers:
    """Words that nano does not know: around a caption, beside an object, and in the place of one."""

    before: tuple[str, ...]
    behind: tuple[str, ...]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    held_out_nouns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Concepts:
    """All concepts by name, in the file's order."""

    objects: dict[str, Object]
    styles: dict[str, Style]
    backgrounds: dict[str, Background]
    fillers: Fillers


def load_concepts(path: Path = CONCEPTS_FILE, fillers_path: Path = FILLERS_FILE) -> Concepts:
    """Read the concepts. Raises ValueError when a name or a hexcode appears twice, TypeError for an unknown key."""
    table = tomllib.loads(path.read_text())
    objects = [Object(**_tuples(row)) for row in table["objects"]]
    styles = [Style(**_tuples(row)) for row in table["styles"]]
    backgrounds = [_background(row, table["colour_phrases"]) for row in table["backgrounds"]]
    for kind, names in (
        ("object", [thing.name for thing in objects]),
        ("hexcode", [thing.code for thing in objects]),
        ("object word", [word for thing in objects for word in thing.words]),
        ("style", [style.name for style in styles]),
        ("background", [background.name for background in backgrounds]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{path}: {kind} {', '.join(twice)} appears more than once; each must be unique")
    return Concepts(
        objects={thing.name: thing for thing in objects},
        styles={style.name: style for style in styles},
        backgrounds={background.name: background for background in backgrounds},
        fillers=Fillers(**_tuples(tomllib.loads(fillers_path.read_text()))),
    )


def article(words: str) -> str:
    """«a» or «an», as `words` sound."""
    exceptions = ("uni", "ufo", "eu")
    return "an" if words[0] in "aeiou8" and not words.startswith(exceptions) else "a"


def _background(row: dict[str, Any], colour_phrases: list[str]) -> Background:
    if "rgb" not in row:
        return Background(**_tuples(row))
    phrases = tuple(phrase.format(word, a=article(word)) for word in row["words"] for phrase in colour_phrases)
    red, green, blue = row["rgb"]
    return Background(row["name"], phrases, (red, green, blue))


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
