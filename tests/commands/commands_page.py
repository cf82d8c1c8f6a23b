"""docs/COMMANDS.md, written from the commands: `make tables`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from hidream.commands.exit_status import ExitStatus
from hidream.commands.grammar import CONTEXT, Command, Flag, Group
from hidream.commands.index import TOP

START, END = "<!-- commands -->\n", "<!-- end of commands -->"
STATUS_START, STATUS_END = "<!-- exit statuses -->\n", "<!-- end of exit statuses -->"


def filled(page: str) -> str:
    """Put the generated parts into the page between their marks."""
    for start, end, text in ((START, END, _commands()), (STATUS_START, STATUS_END, _statuses())):
        before, _, rest = page.partition(start)
        page = f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}"
    return page


def _statuses() -> str:
    rows = [f"| {int(status)} | {status.about} |" for status in ExitStatus]
    return "\n".join(["| status | meaning |", "|---|---|", *rows, ""])


def _commands() -> str:
    return "\n".join(
        line for path, command, about in _all(TOP, "hidream", "") for line in _section(path, command, about)
    )


def _all(group: Group, path: str, about: str) -> Iterator[tuple[str, Command, str]]:
    for name, entry in group.entries.items():
        command = entry.load(name)
        if isinstance(command, Group):
            yield from _all(command, f"{path} {name}", entry.about)
        elif isinstance(command, Command):
            yield f"{path} {name}", command, entry.about


def _section(path: str, command: Command, about: str) -> Iterator[str]:
    context = click.Context(command, info_name=path, **CONTEXT)
    arguments = [each.make_metavar(context) for each in command.params if isinstance(each, click.Argument)]
    yield f"### `{' '.join([path, *arguments])}`\n"
    yield f"{about[0].upper()}{about[1:]}. {command.details}".strip() + "\n"
    yield "\n".join(["```", *command.examples, "```", ""])
    flags = [flag for flag in command.flags if not {"--json", "--verbose"} & set(flag.opts)]
    if flags:
        yield "| flag | meaning |\n|---|---|"
        yield "\n".join(f"| {_name(flag, context)} | {_escaped(flag.help or '')} |" for flag in flags) + "\n"


def _name(flag: Flag, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in flag.opts)
    return names if flag.is_flag else f"{names} `{_escaped(flag.make_metavar(context))}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
