"""`hidream generate`: one image into a file, or many into a folder with a manifest, here or on a server.

What is asked for becomes jobs (`jobs`), which a backend generates (`backends`). In a folder, what is there already is
found by its manifest (`manifest`) and not generated again.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from hidream.commands import jobs as planning
from hidream.commands import prompt_rows, values
from hidream.commands.backends import Backend, Finished, Local, Remote
from hidream.commands.exit_status import ExitStatus
from hidream.commands.grammar import Command, Flag, Given, note
from hidream.commands.jobs import Axis, Job
from hidream.commands.journal import sole_writer
from hidream.commands.manifest import NAME as MANIFEST
from hidream.commands.manifest import Manifest
from hidream.commands.parameter_flags import parameter_flags, parameters_of
from hidream.commands.printing import in_one_line, json_line
from hidream.commands.progress import Bar, bar
from hidream.commands.prompt_rows import Row
from hidream.commands.setting_flags import configured, model_flags, variant_flag
from hidream.commands.threads import let_threads_sleep
from hidream.commands.values import PATH, TEXT, Value
from hidream.errors import HiDreamError, InvalidInput, MissingInput
from hidream.settings.tables import Settings
from hidream.types import FORMAT_NAMES, ImageFormat, Variant

SUFFIXES = {f".{name}": image_format for name, image_format in FORMAT_NAMES.items()}
FILE, FOLDER = Path("out.png"), Path("out")
"""Where images go without `--out`: one image into a new file of this name, several into this folder."""
GRID = "grid.png"
STDOUT = "-"


def _generate(given: Given, config: Settings) -> int:
    asked = _asked(given)
    single = len(asked) == 1 and not _wants_folder(given)
    out = _file(given) if single else _folder(given)
    if single:
        (job,) = planning.settled([_in_format_of(asked[0], out, given)], secrets.token_hex())
        return _one(given, config, job, out)
    with sole_writer(out):
        if given.sheet is not None or given.grid:
            from hidream.commands import sheets

            sheets.check(given.sheet or out / GRID, len(asked))
        return _many(given, config, asked, out)


def _asked(given: Given) -> list[Job]:
    """All images that the command line asks for. Raises InvalidInput."""
    like = _like(given)
    flags = parameters_of(given)
    if isinstance(given.seed, str):
        flags["seed"] = like["seed"] + int(given.seed)
    base = like | prompt_rows.of_flags(flags)
    rows = [Row({"prompt": prompt}) for prompt in given.prompts]
    rows += prompt_rows.read_rows(given.prompts_file) if given.prompts_file is not None else []
    if not rows and "prompt" in base:
        rows = [Row({})]
    if not rows:
        says = f"{given.like} does not say its prompt; accepted: a prompt beside --like" if given.like else ""
        raise MissingInput(
            says or 'prompt is absent; accepted: hidream generate "a fox in the snow", or --prompts FILE'
        )
    axes = [Axis.parse(each) for each in given.grid]
    names = [prompt_rows.parameter(axis.name).name for axis in axes]
    if len(set(names)) < len(names) or (given.seeds and "seed" in names):
        raise InvalidInput(f"--grid {axes[-1].name} is given twice; accepted: two parameters that differ")
    return planning.plan(rows, base, seeds=given.seeds or (), axes=axes, identity=_identity(given))


def _like(given: Given) -> dict[str, Any]:
    """The parameters of the image that `--like` names; its variant and mode too, unless flags say others."""
    if given.like is None:
        return {}
    from hidream.commands.inspect import made_with

    facts = made_with(given.like)
    given.variant = given.variant or (Variant(facts["variant"]) if facts["variant"] else None)
    known = facts["parameters"] or {"size": facts["size"]} | ({"mode": facts["mode"]} if facts["mode"] else {})
    return {**{name: value for name, value in known.items() if name != "output_format"}, "seed": facts["seed"]}


def _identity(given: Given) -> dict[str, Any]:
    """What decides an image beside its request, as far as the command line says it."""
    names = ["model", "variant", *(name for name in vars(given) if name.startswith(("models__", "compute__")))]
    own = {name: getattr(given, name) for name in names if name not in ("compute__threads", "compute__memory_gb")}
    return {name: str(value) for name, value in sorted(own.items()) if value is not None and name != "models__loras"}


def _wants_folder(given: Given) -> bool:
    several = given.prompts_file is not None or given.grid or given.seeds or len(given.prompts) > 1
    named = given.out is not None and (str(given.out).endswith(os.sep) or given.out.is_dir())
    return bool(several or named or given.sheet)


def _file(given: Given) -> Path:
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


def _folder(given: Given) -> Path:
    """The folder of several images. Raises InvalidInput."""
    out: Path = FOLDER if given.out is None else given.out
    if str(out) == STDOUT or out.suffix.lower() in SUFFIXES:
        raise InvalidInput(f"--out is {str(out)!r:.100}, and several images are asked for; accepted: a folder")
    return out


def _in_format_of(job: Job, out: Path, given: Given) -> Job:
    """Give the job of a single file the format of its name."""
    named = SUFFIXES.get(out.suffix.lower())
    if named is None or named == job.output_format:
        return job
    if given.output_format is not None:
        raise InvalidInput(
            f"--format is {given.output_format}, and --out ends in {out.suffix}; accepted: one of the two"
        )
    return job.changed(output_format=str(named))


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


def _one(given: Given, config: Settings, job: Job, out: Path) -> int:
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


def _many(given: Given, config: Settings, asked: Sequence[Job], out: Path) -> int:
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


def _write_sheet(given: Given, manifest: Manifest, asked: Sequence[Job], out: Path) -> None:
    from hidream.commands.sheets import contact_sheet, grid_sheet

    files = {job.key: out / entry["file"] for job in asked if (entry := manifest.find(job.key))}
    target = given.sheet or out / GRID
    if not given.grid:
        several = len({job.parameters["prompt"] for job in asked}) > 1
        labelled = [(files[job.key], _label(job, prompt=several)) for job in asked if job.key in files]
        if not labelled:
            return
        sheet = contact_sheet(labelled)
    else:
        columns = list(dict.fromkeys(job.cell[0] for job in asked))
        groups = list(dict.fromkeys(_group(job) for job in asked))
        found = {(_group(job), job.cell[0]): files.get(job.key) for job in asked}
        names = [Axis.parse(text).name for text in given.grid]
        rows = [[found.get((group, column)) for column in columns] for group in groups]
        several = len({job.parameters["prompt"] for job in asked}) > 1
        labels = [_row_label(group, names[1:], several=several, seeds=bool(given.seeds)) for group in groups]
        sheet = grid_sheet(rows, [f"{names[0]} {text}" for text in columns], labels)
    sheet.save(target)
    if given.json:
        json_line({"sheet": str(target)})
    else:
        click.echo(f"{target}: a sheet of {len(files)} images")


def _group(job: Job) -> tuple[Any, ...]:
    """The row of a grid in which an image stands: the second axis, the prompt, and the seed if several were given."""
    return (*job.cell[1:], job.parameters["prompt"], job.key.rpartition("-")[2], job.where)


def _row_label(group: tuple[Any, ...], names: Sequence[str], *, several: bool, seeds: bool) -> str:
    parts = [f"{name} {value}" for name, value in zip(names, group, strict=False)]
    return ", ".join(parts + [str(group[len(names)])] * several)


def _label(job: Job, *, prompt: bool) -> str:
    seed = f"seed {job.parameters['seed']}"
    return f"{seed}, {job.parameters['prompt']}" if prompt else seed


def _check(given: Given) -> None:
    """Refuse combinations of flags that contradict each other."""
    if len(given.prompts) > 1 and not any(" " in prompt.strip() for prompt in given.prompts):
        sentence = " ".join(given.prompts)
        raise click.UsageError(
            f"{len(given.prompts)} prompts of one word each; if it is one prompt, put it in quotes: "
            f'hidream generate "{sentence:.60}" (prompts of one word go into a file for --prompts)'
        )
    if given.seeds and (given.seed is not None or given.num_images is not None):
        raise click.UsageError("--seeds is given beside --seed or -n; accepted: one of them")
    if isinstance(given.seed, str) and given.like is None:
        raise click.UsageError(f"--seed: {given.seed} is a step from another image's seed; accepted: with --like FILE")
    if len(given.grid) > 2:
        raise click.UsageError("--grid is given more than twice; accepted: one or two axes")
    if given.server is not None:
        named = next((name for name in vars(given) if _of_model(name) and getattr(given, name) is not None), None)
        if named:
            flag = named.rpartition("__")[2].replace("_", "-")
            raise click.UsageError(f"--{flag} is given with --server, where the server's operator decides it")


def _of_model(name: str) -> bool:
    return name == "model" or name.startswith(("models__", "compute__"))


def _params() -> list[click.Parameter]:
    size, seed, *others = parameter_flags(seed={"type": Value(values.seed_or_step, "seed")}).values()
    suffixes = ", ".join(SUFFIXES)
    return [
        click.Argument(["prompts"], nargs=-1, type=TEXT, metavar="[PROMPT]..."),
        size,
        seed,
        Flag(
            ["--out", "-o"],
            type=PATH,
            metavar="PATH",
            help=f"a new file ({suffixes}; - is standard output), or a folder for several images (default: out.png, "
            "out-2.png, …, or the folder out)",
        ),
        variant_flag(),
        Flag(
            ["--prompts", "prompts_file"],
            type=PATH,
            metavar="FILE",
            help="a file of prompts: one per line, or .jsonl or .csv with any parameters; - is standard input",
        ),
        Flag(
            ["--seeds"],
            type=Value(values.seeds, "seeds"),
            metavar="SEEDS",
            help="an image for each, such as 1-9 or 3,7",
        ),
        Flag(
            ["--grid"],
            multiple=True,
            type=TEXT,
            metavar="NAME=VALUES",
            help="an image for each value, and a sheet of them; twice: a grid",
        ),
        Flag(["--sheet"], type=PATH, metavar="FILE", help="an image file for a sheet of all images"),
        Flag(
            ["--like"], type=PATH, metavar="FILE", help="take the parameters of this image; --seed +1 is the next seed"
        ),
        *others,
        Flag(
            ["--server"], type=TEXT, metavar="URL", help="generate on this hidream server; its key is HIDREAM_API_KEY"
        ),
        Flag(["--force"], is_flag=True, help="replace what is there, and generate it again"),
        *model_flags(),
    ]


GENERATE = Command(
    _generate,
    _params(),
    check=_check,
    extras="torch",
    details="Several images go into a folder with a manifest: parameters, seed, version and digest of each. The same "
    "command again generates only what is missing there, for example after an interruption.",
    examples=[
        'hidream generate "a fox in the snow"',
        'hidream generate "a cat in a meadow" --size 1024x768 --seed 7 --out cat.png',
        'hidream generate "a cat in the snow" --image cat.png --strength 0.6',
        'hidream generate "a fox" --seeds 1-9 --sheet sheet.png',
        'hidream generate "a fox" --grid steps=8,16,28 --grid shift=1,3,6 --seed 7 --out foxes',
        "hidream generate --prompts prompts.csv --out images --json",
        "hidream generate --like out/0001-a-fox.png --seed +1",
        'hidream generate "a fox" --server http://127.0.0.1:8000',
    ],
    elsewhere={
        "--output": "--out",
        "--prompt": "the prompt itself, in quotes, without a flag",
        "--width": "--size WIDTHxHEIGHT",
        "--height": "--size WIDTHxHEIGHT",
        "-W": "--size WIDTHxHEIGHT",
        "-H": "--size WIDTHxHEIGHT",
        "--cfg": "--guidance",
        "--cfg-scale": "--guidance",
        "--scheduler": "--sampler",
        "--count": "--num-images, -n",
        "--n": "--num-images, -n",
        "--batch-size": "--num-images, -n",
        "--init-image": "--image",
        "--input": "--image",
        "--url": "--server",
        "--host": "--server",
        "--precision": "--dtype",
        "--quiet": "the default; --verbose writes the log",
    },
)
