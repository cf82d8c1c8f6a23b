"""Sheets of many images: a contact sheet with labels below, or a grid with labelled axes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hidream.commands.jobs import Job
from hidream.errors import InvalidInput
from hidream.types import FORMAT_NAMES

CELL_PX, GAP_PX, TEXT_PX = 384, 12, 18
IMAGES_MAX = 1024
"""A sheet of so many takes 0.5 GB of memory."""
PAPER, INK = (255, 255, 255), (30, 30, 30)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def check(target: Path, images: int) -> None:
    """Raise InvalidInput if a sheet of so many images cannot be written there, before they are generated."""
    if target.suffix.lower().removeprefix(".") not in FORMAT_NAMES:
        suffixes = ", ".join(f".{name}" for name in FORMAT_NAMES)
        raise InvalidInput(f"--sheet is {str(target)!r:.100}; accepted: a name that ends in {suffixes}")
    if target.is_dir() or not target.parent.is_dir():
        raise InvalidInput(f"--sheet is {str(target)!r:.100}; accepted: a file in a folder that exists")
    if images > IMAGES_MAX:
        raise InvalidInput(f"a sheet of {images:,} images is asked for; accepted: up to {IMAGES_MAX:,}")


def contact_sheet_of(jobs: Sequence[Job], files: Mapping[str, Path]) -> Image.Image:
    """Make a contact sheet of the files of jobs, by key; labels are seeds, and prompts if they differ."""
    prompts = _have_several_prompts(jobs)
    return contact_sheet([(files[job.key], _label(job, prompt=prompts)) for job in jobs if job.key in files])


def grid_of(jobs: Sequence[Job], files: Mapping[str, Path], names: Sequence[str]) -> Image.Image:
    """Make a grid of the files of jobs, by key; `names` are those of its axes.

    Rows are the values of the second axis, the prompts, and the repetitions or seeds of each.
    """
    columns = list(dict.fromkeys(job.cell[0] for job in jobs))
    rows = _rows(jobs)
    cells = [[files.get(row[column].key) if column in row else None for column in columns] for row in rows]
    return grid_sheet(cells, [f"{names[0]} {text}" for text in columns], row_labels(jobs, names[1:]))


def row_labels(jobs: Sequence[Job], names: Sequence[str]) -> list[str]:
    """Say what the images of each row share; the seed only if a cell has several images. `names`: the second axis."""
    prompts, seeds = _have_several_prompts(jobs), any(before for *_, before in _places(jobs))
    return [_row_label(list(row.values()), names, prompt=prompts, seed=seeds) for row in _rows(jobs)]


def contact_sheet(images: Sequence[tuple[Path, str]]) -> Image.Image:
    """Put images, with a label below each, into about as many columns as rows."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    step = CELL_PX + GAP_PX
    sheet = _paper(columns * step + GAP_PX, rows * (step + TEXT_PX + GAP_PX) + GAP_PX)
    draw, font = ImageDraw.Draw(sheet), _font()
    for i, (path, label) in enumerate(images):
        x, y = GAP_PX + i % columns * step, GAP_PX + i // columns * (step + TEXT_PX + GAP_PX)
        _paste(sheet, path, x, y)
        draw.text((x, y + CELL_PX + 4), _shortened(draw, label, font, CELL_PX), INK, font)
    return sheet


def grid_sheet(cells: Sequence[Sequence[Path | None]], columns: Sequence[str], rows: Sequence[str]) -> Image.Image:
    """Put images into a grid: `columns` are the labels above, `rows` those at the left. None is an empty cell."""
    probe, font = ImageDraw.Draw(_paper(1, 1)), _font()
    left = GAP_PX + max(
        (round(probe.textlength(_shortened(probe, row, font, CELL_PX), font)) for row in rows), default=0
    )
    step, top = CELL_PX + GAP_PX, GAP_PX + (TEXT_PX + GAP_PX) * any(columns)
    sheet = _paper(left + GAP_PX + len(columns) * step, top + len(rows) * step)
    draw = ImageDraw.Draw(sheet)
    for x, label in enumerate(columns):
        shown = _shortened(draw, label, font, CELL_PX)
        draw.text((left + GAP_PX + x * step + CELL_PX // 2, GAP_PX), shown, INK, font, anchor="ma")
    for y, label in enumerate(rows):
        shown = _shortened(draw, label, font, CELL_PX)
        draw.text((left, top + y * step + CELL_PX // 2), shown, INK, font, anchor="rm")
        for x, path in enumerate(cells[y]):
            if path is not None:
                _paste(sheet, path, left + GAP_PX + x * step, top + y * step)
    return sheet


def _have_several_prompts(jobs: Sequence[Job]) -> bool:
    return len({job.parameters["prompt"] for job in jobs}) > 1


def _places(jobs: Sequence[Job]) -> list[tuple[Any, ...]]:
    """The row of each job: second axis, prompt, line of the file, and how many jobs before it have the same cell."""
    before: Counter[tuple[Any, ...]] = Counter()
    places = []
    for job in jobs:
        one = (job.cell, job.parameters["prompt"], job.where)
        places.append((*job.cell[1:], *one[1:], before[one]))
        before[one] += 1
    return places


def _rows(jobs: Sequence[Job]) -> list[dict[str, Job]]:
    """The rows of a grid: the job of each column."""
    rows: dict[tuple[Any, ...], dict[str, Job]] = {}
    for job, place in zip(jobs, _places(jobs), strict=True):
        rows.setdefault(place, {})[job.cell[0]] = job
    return list(rows.values())


def _row_label(row: Sequence[Job], names: Sequence[str], *, prompt: bool, seed: bool) -> str:
    parts = [f"{name} {value}" for name, value in zip(names, row[0].cell[1:], strict=True)]
    seeds = {job.parameters["seed"] for job in row}
    parts += [f"seed {min(seeds)}"] * (seed and len(seeds) == 1)
    return ", ".join(parts + [row[0].parameters["prompt"]] * prompt)


def _label(job: Job, *, prompt: bool) -> str:
    seed = f"seed {job.parameters['seed']}"
    return f"{seed}, {job.parameters['prompt']}" if prompt else seed


def _paper(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAPER)


def _font() -> Font:
    return ImageFont.load_default(TEXT_PX)


def _paste(sheet: Image.Image, path: Path, x: int, y: int) -> None:
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
    sheet.paste(image, (x + (CELL_PX - image.width) // 2, y + (CELL_PX - image.height) // 2))


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: Font, width_px: int) -> str:
    """Cut a text to a width."""
    text = " ".join(text.split())[:width_px]  # no character is narrower than a pixel
    while draw.textlength(text, font) > width_px and len(text) > 1:
        text = f"{text.rstrip('…')[:-1]}…"
    return text
