"""All commands of `hidream`, by name, with the line that `hidream --help` says about each."""

from __future__ import annotations

import click

from hidream import __version__
from hidream.commands.grammar import Entry, Group


def _entry(module: str, about: str) -> Entry:
    """An entry whose module, and the name in it, are called like the command."""
    return Entry(f"hidream.commands.{module}", module.upper(), about)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(__version__)
        ctx.exit()


SECTIONS = {
    "Images": {
        "generate": _entry("generate", "generate images from prompts, here or on a server"),
        "inspect": _entry("inspect", "show how an image of hidream was made"),
        "batch": _entry("batch", "submit many requests to a server, and fetch their images later"),
    },
    "Models": {
        "models": _entry("models", "download models from the Hugging Face Hub; list, show, verify and remove them"),
        "info": _entry("info", "show models, parameters, memory and device"),
        "convert": _entry("convert", "convert weights to another format or type"),
    },
    "Server": {
        "serve": Entry("hidream.commands.services", "SERVE", "serve the HTTP API, and run a worker"),
        "api": Entry("hidream.commands.services", "API", "serve the HTTP API; workers run elsewhere"),
        "worker": Entry("hidream.commands.services", "WORKER", "generate the images of the tasks in the database"),
        "keys": _entry("keys", "create, list, revoke, rotate, export and erase API keys"),
        "audit": _entry("audit", "show the audit log: what was done to keys, when and by whom"),
        "store": _entry("store", "copy a database, or all files, to another one"),
        "mcp": Entry(
            "hidream.commands.services",
            "MCP",
            "serve as a tool for a language model: the Model Context Protocol over stdio",
        ),
    },
    "This machine": {
        "doctor": _entry(
            "doctor", "check device, memory, model, database and files: what is wrong, and how to mend it"
        ),
        "bench": _entry("bench", "measure the seconds that an image takes on this machine"),
        "comfyui": _entry("comfyui", "put the nodes for ComfyUI into it, take them out, and check them"),
        "completion": Entry("hidream.commands.shell", "COMPLETION", "print the completion script of a shell"),
        "help": Entry("hidream.commands.shell", "HELP", "show the help of a command"),
    },
}

TOP = Group(
    SECTIONS,
    params=[click.Option(["--version"], is_flag=True, is_eager=True, callback=_version, help="show the version")],
    epilog="`hidream COMMAND --help` has the flags and examples of a command.",
)
TOP.help = "The self-hosted home of HiDream-I1."
