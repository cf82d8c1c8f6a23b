"""`hidream convert`: weights to another format or type."""

from __future__ import annotations

from pathlib import Path

import click

from hidream.commands import values
from hidream.commands.grammar import Command, Flag, Given
from hidream.commands.printing import result
from hidream.commands.progress import bytes_bar
from hidream.commands.threads import let_threads_sleep
from hidream.commands.values import PATH, TEXT, OneOf, Value
from hidream.settings.tables import Settings
from hidream.types import Variant


def _convert(given: Given, config: Settings) -> int:
    let_threads_sleep()
    from hidream.formats.convert import convert, format_of
    from hidream.formats.targets import ConversionOptions, Format
    from hidream.hub.locate import locate
    from hidream.model.checkpoint.inferred import published_config

    to = Format(given.to) if given.to else format_of(given.target)
    options = ConversionOptions(to, given.type, given.shard_size, given.force, given.variant)
    with bytes_bar() as on_bytes:

        def tell(target: Path, done: int, total: int) -> None:
            on_bytes(target.name, done, total)

        written = convert(locate(str(given.source)), given.target, options, published_config, tell)
    result(given, {"files": [str(path) for path in written]}, map(str, written))
    return 0


CONVERT = Command(
    _convert,
    [
        click.Argument(["source"], type=PATH),
        click.Argument(["target"], type=PATH),
        Flag(["--to"], type=OneOf(("diffusers", "comfy", "gguf")), help="default: by the target's name"),
        Flag(
            ["--type"],
            type=TEXT,
            metavar="TYPE",
            help="bf16, fp16, fp32, fp8, fp8_scaled, Q8_0, Q4_0, … (default: as stored, if the format allows it)",
        ),
        Flag(
            ["--shard-size"],
            type=Value(values.nbytes, "size"),
            default=5 * 10**9,
            metavar="SIZE",
            help="largest file of a diffusers folder (default: 5GB)",
        ),
        Flag(["--variant"], type=OneOf(Variant), help="which transformer, if a ComfyUI folder has several"),
        Flag(["--force"], is_flag=True, help="replace an existing target"),
    ],
    details="SOURCE is a file or folder of one part, or a whole folder (also ComfyUI's). TARGET is a file or folder "
    "that does not exist yet.",
    extras="torch",
    examples=[
        "hidream convert HiDream-I1-Dev/transformer dev_q8.gguf --type Q8_0",
        "hidream convert HiDream-I1-Dev ComfyUI/models --to comfy --type fp8_scaled",
    ],
    elsewhere={"--output": "the second argument", "--out": "the second argument", "--format": "--to"},
)
