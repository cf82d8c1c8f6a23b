"""The run of `hidream generate`: its jobs become one file, or a folder with a manifest and a sheet.

In a folder, what is there already is found by its manifest (`manifest`) and not generated again. A backend generates
the rest (`backends`).
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from hidream.commands import destination
from hidream.commands import jobs as planning
from hidream.commands.backends import Backend, Finished, Local, Remote
from hidream.commands.destination import STDOUT
from hidream.commands.exit_status import ExitStatus
from hidream.commands.grammar import Given, note
from hidream.commands.jobs import Axis, Job
from hidream.commands.manifest import NAME as MANIFEST
from hidream.commands.manifest import Manifest
from hidream.commands.printing import in_one_line, json_line
from hidream.commands.progress import Bar, bar
from hidream.commands.setting_flags import configured
from hidream.commands.threads import let_threads_sleep
from hidream.errors import HiDreamError, InvalidInput
from hidream.settings.tables import Settings
from hidream.types import Variant


def one(given: Given, config: Settings, job: Job, out: Path) -> int:
    """Generate one image into a file, or to standard output."""
    with _backend(given, config, [job]) as (backend, display):
        display.show(f"seed {job.parameters['seed']}")
        ((_, finished),) = backend.generate([job], lambda done, of: display.show(done=done, total=of or None))
    if isinstance(finished, HiDreamError):
        raise finished
    for warning in finished.warnings:
        note(warning)
    if str(out) == STDOUT:
        sys.stdout.buffer.write(finished.data)
        sys.stdout.buffer.flush()
        return ExitStatus.OK
    out.write_bytes(finished.data)
    _say_one(given, job, out, finished)
    return ExitStatus.OK


def _say_one(given: Given, job: Job, out: Path, finished: Finished) -> None:
    if given.json:
        json_line({"file": str(out), **_about(job, finished), "seconds": finished.seconds})
        return
    from hidream.commands.terminal_image import show

    seconds = ", ".join(f"{phase} {value:.2f} s" for phase, value in finished.seconds.items())
    size = f"{job.parameters['size']}, " if "size" in job.parameters else ""
    click.echo(f"{out}: {size}seed {finished.seed}, {finished.version}\n{seconds}")
    show(finished.data)


def _about(job: Job, finished: Finished) -> dict[str, Any]:
    return {
        "seed": finished.seed,
        "version": finished.version,
        "parameters": {**job.parameters, "seed": finished.seed},
        "warnings": list(finished.warnings),
    }


@dataclass(slots=True)
class _Tally:
    """What became of the images of a run."""

    there: int = 0
    made: int = 0
    failed: list[str] = field(default_factory=list)


def many(given: Given, config: Settings, asked: Sequence[Job], out: Path) -> int:
    """Generate images into a folder; those that are there already are left alone."""
    manifest, tally = Manifest(out), _Tally()
    asked = planning.settled(asked, secrets.token_hex() if given.force else manifest.id)
    todo = [job for job in asked if given.force or manifest.find(job.key) is None]
    tally.there = len(asked) - len(todo)
    for job in asked:
        if given.json and not given.force and (entry := manifest.find(job.key)) is not None:
            json_line({**entry, "file": str(out / entry["file"]), "there_already": True})
    try:
        if todo:
            _fill(given, config, manifest, todo, tally)
    except KeyboardInterrupt:
        note(f"interrupted: {tally.there + tally.made} of {len(asked)} images are in {out}; "
             "the same command generates the rest")  # fmt: skip
        raise
    finally:
        if tally.failed:
            note(f"{len(tally.failed)} of {len(asked)} images failed, the first: {tally.failed[0]}")
    if given.sheet is not None or given.grid:
        _write_sheet(given, manifest, asked, out)
    if not given.json:
        there = f", {tally.there} of them there already" * bool(tally.there)
        click.echo(f"{out}: {tally.there + tally.made} images{there}; {out / MANIFEST} says how each was made")
    if not tally.failed:
        return ExitStatus.OK
    return ExitStatus.PARTLY if tally.made or tally.there else ExitStatus.FAILED


def _fill(given: Given, config: Settings, manifest: Manifest, todo: Sequence[Job], tally: _Tally) -> None:
    with _backend(given, config, todo, secrets.token_hex() if given.force else manifest.id) as (backend, display):
        display.show("generating", done=0, total=len(todo))
        for index, finished in backend.generate(todo, lambda done, of: None):
            job = todo[index]
            if isinstance(finished, HiDreamError):
                tally.failed.append(f"{job.where + ': ' if job.where else ''}{in_one_line(finished.message)}")
            else:
                about = {**_about(job, finished), "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
                entry = manifest.add(job.key, job.file, finished.data, about)
                tally.made += 1
                _say_entry(given, manifest.folder / entry["file"], entry, display)
            display.show(done=tally.made + len(tally.failed))


def _say_entry(given: Given, file: Path, entry: dict[str, Any], display: Bar) -> None:
    if given.json:
        json_line({**entry, "file": str(file)})
        return
    for warning in entry["warnings"]:
        note(f"{file}: {warning}")
    if display.display is None:
        click.echo(f"{file}: seed {entry['seed']}")


@contextmanager
def _backend(given: Given, config: Settings, todo: Sequence[Job], folder_id: str = "") -> Iterator[tuple[Backend, Bar]]:
    """Load the model or connect to the server, and show the progress of what follows."""
    if given.server is not None:
        variant = given.variant or Variant.DEV
        with bar("waiting", "") as display, closing(Remote(given.server, variant, config, folder_id)) as remote:
            yield remote, display
        return
    let_threads_sleep()
    _check_inputs(todo, config)
    variant, config = configured(given, config)
    with bar(f"loading hidream-i1-{variant}", "") as display:
        yield Local(variant, config), display


def _check_inputs(todo: Sequence[Job], config: Settings) -> None:
    """Judge LoRAs, images and masks before minutes of loading. Raises InvalidInput."""
    loras = {use["name"] for job in todo for use in job.parameters.get("loras", ())}
    if loras:
        from hidream.model.checkpoint.lora_folder import SUFFIX, lora_files

        known = sorted(file.name.removesuffix(SUFFIX) for file in lora_files(config.models.loras))
        for name in sorted(loras - set(known)):
            accepted = ", ".join(known[:50]) or ("none, because the folder has none" if config.models.loras else "")
            raise InvalidInput(
                f"--lora names {name!r:.100}; accepted: {accepted or 'a LoRA from the folder that --lora-folder names'}"
            )
    pairs = {(job.parameters["image"], job.parameters.get("mask")) for job in todo if "image" in job.parameters}
    for image, mask in pairs:
        from hidream.images.prepared import prepare

        prepare((), Path(image).read_bytes(), None if mask is None else Path(mask).read_bytes())


def _write_sheet(given: Given, manifest: Manifest, asked: Sequence[Job], out: Path) -> None:
    from hidream.commands import sheets

    files = {job.key: out / entry["file"] for job in asked if (entry := manifest.find(job.key))}
    if given.grid:
        names = [Axis.parse(text).name for text in given.grid]
        sheet = sheets.grid_of(asked, files, names)
    elif files:
        sheet = sheets.contact_sheet_of(asked, files)
    else:
        return
    target = destination.sheet(given, out)
    sheet.save(target)
    if given.json:
        json_line({"sheet": str(target)})
    else:
        click.echo(f"{target}: a sheet of {len(files)} images")
