"""`hidream generate`: one image into a file, or many into a folder with a manifest, here or on a server.

Here are its flags, and what they ask for: jobs (`jobs`), and where their images go (`destination`). `generation` runs
them.
"""

from __future__ import annotations

import secrets
from typing import Any

import click

from hidream.commands import destination, generation, prompt_rows, values
from hidream.commands import jobs as planning
from hidream.commands.destination import SUFFIXES
from hidream.commands.grammar import Command, Flag, Given
from hidream.commands.jobs import Axis, Job
from hidream.commands.journal import sole_writer
from hidream.commands.parameter_flags import parameter_flags, parameters_of
from hidream.commands.prompt_rows import Row
from hidream.commands.setting_flags import model_flags, variant_flag
from hidream.commands.values import PATH, TEXT, Value
from hidream.errors import InvalidInput, MissingInput
from hidream.settings.tables import Settings
from hidream.types import Variant


def _generate(given: Given, config: Settings) -> int:
    asked = _asked(given)
    if len(asked) > 1 or destination.wants_folder(given):
        out = destination.folder(given)
        with sole_writer(out):
            if given.sheet is not None or given.grid:
                from hidream.commands import sheets

                sheets.check(destination.sheet(given, out), len(asked))
            return generation.many(given, config, asked, out)
    out = destination.file(given)
    (job,) = planning.settled([destination.in_format_of(asked[0], out, given)], secrets.token_hex())
    return generation.one(given, config, job, out)


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
