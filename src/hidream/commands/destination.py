"""Where `hidream generate` puts its images: one into a file, several into a folder."""

from __future__ import annotations

import os
from pathlib import Path

from hidream.commands.grammar import Given
from hidream.commands.jobs import Job
from hidream.errors import InvalidInput
from hidream.types import FORMAT_NAMES, ImageFormat

SUFFIXES = {f".{name}": image_format for name, image_format in FORMAT_NAMES.items()}
FILE, FOLDER = Path("out.png"), Path("out")
"""Where images go without `--out`: one image into a new file of this name, several into this folder."""
GRID = "grid.png"
STDOUT = "-"


def wants_folder(given: Given) -> bool:
    """Whether the images go into a folder, even if there is only one."""
    several = given.prompts_file is not None or given.grid or given.seeds or len(given.prompts) > 1
    named = given.out is not None and (str(given.out).endswith(os.sep) or given.out.is_dir())
    return bool(several or named or given.sheet)


def file(given: Given) -> Path:
    """The file of a single image. Raises InvalidInput if it cannot be written, before it is generated."""
    if given.out is None:
        return _numbered(FILE.with_suffix(f".{given.output_format or ImageFormat.PNG}"))
    out: Path = given.out
    if str(out) == STDOUT:
        return out
    if out.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"--out is {str(out)!r:.100}; accepted: a name that ends in {', '.join(SUFFIXES)}, or -")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise InvalidInput(f"--out is {str(out)!r:.100}; accepted: a file in a folder that exists and may be written")
    if out.exists() and not given.force:
        raise InvalidInput(f"--out is {str(out)!r:.100}, which is there already; accepted: a new file, or --force")
    return out


def _numbered(path: Path) -> Path:
    """The first name of out.png, out-2.png, … that is free."""
    names = (path if i == 1 else path.with_stem(f"{path.stem}-{i}") for i in range(1, 10**6))
    return next(each for each in names if not each.exists())


def folder(given: Given) -> Path:
    """The folder of several images. Raises InvalidInput."""
    out: Path = FOLDER if given.out is None else given.out
    if str(out) == STDOUT or out.suffix.lower() in SUFFIXES:
        raise InvalidInput(f"--out is {str(out)!r:.100}, and several images are asked for; accepted: a folder")
    return out


def sheet(given: Given, out: Path) -> Path:
    """The file of a sheet or grid: the one that was named, or one in the folder of its images."""
    return given.sheet or out / GRID


def in_format_of(job: Job, out: Path, given: Given) -> Job:
    """Give the job of a single file the format of its name."""
    named = SUFFIXES.get(out.suffix.lower())
    if named is None or named == job.output_format:
        return job
    if given.output_format is not None:
        raise InvalidInput(
            f"--format is {given.output_format}, and --out ends in {out.suffix}; accepted: one of the two"
        )
    return job.changed(output_format=str(named))
