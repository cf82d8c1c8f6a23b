"""`hidream help` and `hidream completion`: what the command line says about itself."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hidream.commands import printing
from hidream.commands.grammar import CONTEXT, Command, Given, Group, suggestion
from hidream.commands.values import TEXT, OneOf
from hidream.settings.tables import Settings

COMPLETE_VARIABLE = "_HIDREAM_COMPLETE"
"""The variable with which a shell asks for completions."""
INSTALL = {
    "bash": 'eval "$(hidream completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(hidream completion zsh)"     # in ~/.zshrc',
    "fish": "hidream completion fish | source      # in ~/.config/fish/config.fish",
}


def _help(given: Given, config: Settings) -> int:
    from hidream.commands.index import TOP

    command: click.Command = TOP
    ctx = click.Context(TOP, info_name="hidream", **CONTEXT)
    for name in given.names:
        found = command.get_command(ctx, name) if isinstance(command, Group) else None
        if found is None:
            known = list(command.entries) if isinstance(command, Group) else []
            near = suggestion(name, known) or f"; accepted: {', '.join(known) or 'no further name'}"
            raise click.UsageError(f"there is no command {name!r:.100}{near}", ctx)
        ctx, command = click.Context(found, info_name=name, parent=ctx, **CONTEXT), found
    printing.result(given, {"command": ctx.command_path, "help": ctx.get_help()}, ctx.get_help())
    return 0


def _completion(given: Given, config: Settings) -> int:
    from hidream.commands.index import TOP

    kind = get_completion_class(given.shell)
    assert kind is not None, f"click completes in {given.shell}"
    script = kind(TOP, {}, "hidream", COMPLETE_VARIABLE).source()
    printing.result(given, {"shell": given.shell, "script": script}, script)
    return 0


HELP = Command(
    _help,
    [click.Argument(["names"], nargs=-1, type=TEXT, metavar="[COMMAND]...")],
    examples=["hidream help generate", "hidream help keys create"],
)
COMPLETION = Command(
    _completion,
    [click.Argument(["shell"], type=OneOf(INSTALL))],
    details="The script completes commands, flags, choices and file names.",
    examples=list(INSTALL.values()),
)
