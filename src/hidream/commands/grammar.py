"""The grammar of the command line, on top of click: commands, groups, flags with other names, and errors in one line.

Beyond click, a command has examples in its `--help`; a flag may have other names that are not shown, and former names,
which still work and say so; and every error is one line that names what was typed, what is accepted or probably meant,
and where to read more.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import click

from hidream.settings.tables import Settings

Given: TypeAlias = SimpleNamespace
"""The values of a command's flags and arguments, by name."""
Run: TypeAlias = Callable[[Given, Settings], int]
"""Runs a command, and returns the exit status."""

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Flag(click.Option):
    """A flag. `also`: further names, not shown. `former`: names of earlier releases, which work with a warning."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        also: Sequence[str] = (),
        former: Sequence[str] = (),
        **options: Any,  # noqa: ANN401 - click's
    ) -> None:
        super().__init__(list(names), **options)
        self.also, self.former = tuple(also), tuple(former)

    @property
    def long(self) -> str:
        """The name that errors and help show."""
        return max(self.opts, key=len)


class Command(click.Command):
    """A command: its flags and arguments, examples of its use, and the function that runs it.

    `check` may refuse a combination of flags: it gets their values, and raises click.UsageError. `elsewhere` maps flags
    of other tools to what they are called here. `extras` are those of `pyproject.toml` that it needs on this machine.
    `service`: it runs until it is told to stop, and prints no result.
    """

    def __init__(
        self,
        run: Run,
        params: Sequence[click.Parameter] = (),
        *,
        examples: Sequence[str] = (),
        details: str = "",
        check: Callable[[Given], None] | None = None,
        elsewhere: Mapping[str, str] | None = None,
        unexpected: Callable[[Sequence[str]], str] | None = None,
        extras: str = "",
        service: bool = False,
    ) -> None:
        common = [] if service else [JSON_FLAG(), VERBOSE_FLAG()]
        super().__init__(None, params=[*params, *common], context_settings=CONTEXT)
        self.run, self.examples, self.details, self.check = run, examples, details, check
        self.elsewhere, self.unexpected, self.service = elsewhere or {}, unexpected, service
        self.extras = extras

    def extras_for(self, given: Given) -> str:
        """The extras that it needs as it is called: none with `--server`, where another machine does the work."""
        return "" if getattr(given, "server", None) else self.extras

    @property
    def flags(self) -> list[Flag]:
        """The flags, in the order of the help."""
        return [each for each in self.params if isinstance(each, Flag)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, with the shown name in place of any other name of a flag."""
        ctx.allow_extra_args = True
        try:
            super().parse_args(ctx, self._renamed(args))
        except click.BadOptionUsage as error:
            error.ctx = error.ctx or ctx
            raise
        if ctx.args and not ctx.resilient_parsing:
            cure = self.unexpected(ctx.args) if self.unexpected else ""
            raise click.UsageError(f"unexpected argument{'s' * (len(ctx.args) > 1)}: {' '.join(ctx.args)}{cure}", ctx)
        return []

    def _renamed(self, args: Sequence[str]) -> list[str]:
        known = {name: flag for flag in self.flags for name in (*flag.opts, *flag.also, *flag.former)}
        renamed: list[str] = []
        value_follows = False
        for i, word in enumerate(args):
            if word == "--" and not value_follows:
                return [*renamed, *args[i:]]
            name, equals, value = word.partition("=")
            flag = None if value_follows else known.get(name)
            if flag is not None and name in flag.former:
                note(f"{name} is now {flag.long}; the old name works in this release only")
            renamed.append(word if flag is None or name in flag.opts else f"{flag.long}{equals}{value}")
            value_follows = flag is not None and not equals and not flag.is_flag and not flag.count
        return renamed

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does."""
        super().format_help_text(ctx, formatter)
        if self.details:
            formatter.write_paragraph()
            with formatter.indentation():
                for paragraph in self.details.split("\n\n"):
                    formatter.write_text(paragraph)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags, then the examples."""
        super().format_options(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


@dataclass(frozen=True, slots=True)
class Entry:
    """A command in a group: the module and the name in it that declares it, and what its line in the help says."""

    module: str
    attribute: str
    about: str

    def load(self, name: str) -> click.Command:
        """Import the module, and return the command."""
        command = getattr(importlib.import_module(self.module), self.attribute)
        assert isinstance(command, click.Command), f"{self.module}.{self.attribute} is no command"
        command.name, command.help = name, f"{self.about[0].upper()}{self.about[1:]}."
        return command


class Group(click.Group):
    """Commands, or groups of them, that are imported when they are used; `sections` have them in the help's order."""

    def __init__(self, sections: Mapping[str, Mapping[str, Entry]], **options: Any) -> None:  # noqa: ANN401
        super().__init__(
            None, context_settings=CONTEXT, subcommand_metavar="COMMAND …", no_args_is_help=False, **options
        )
        self.sections = sections
        self.invoke_without_command = True  # `parse` says what is missing

    @property
    def entries(self) -> dict[str, Entry]:
        """All commands, by name."""
        return {name: entry for section in self.sections.values() for name, entry in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = self.entries.get(cmd_name)
        return None if entry is None else entry.load(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, without importing any."""
        width = max(map(len, self.entries))
        for title, section in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{width}}", entry.about) for name, entry in section.items()])


def JSON_FLAG() -> Flag:  # noqa: N802 - the declaration of a flag, which click does not share between commands
    """Declare `--json`."""
    return Flag(["--json"], is_flag=True, help="print the result as JSON on standard output, and nothing else there")


def VERBOSE_FLAG() -> Flag:  # noqa: N802
    """Declare `--verbose`."""
    return Flag(["--verbose", "-v"], is_flag=True, help="write the log to standard error; without it only warnings")


def parse(top: Group, argv: Sequence[str], program: str = "hidream") -> tuple[Command, Given]:
    """Parse a command line; the result has the name of the command, such as `keys create`, in `command`.

    Raises click.ClickException if it is not understood, and click.exceptions.Exit after `--help` and the like.
    """
    ctx = top.make_context(program, list(argv))
    command: click.Command = top
    while isinstance(command, Group):
        rest = [*ctx._protected_args, *ctx.args]
        if not rest:
            if ctx.parent is None:
                click.echo(ctx.get_help(), color=ctx.color)
                ctx.exit()
            raise click.UsageError(f"a command is missing; accepted: {', '.join(command.entries)}", ctx)
        name, found, rest = command.resolve_command(ctx, rest)
        assert found is not None, "resolve_command raises on an unknown name"
        ctx, command = found.make_context(name, rest, parent=ctx), found
    assert isinstance(command, Command), f"{command} cannot be run"
    given = SimpleNamespace(command=ctx.command_path.removeprefix(f"{program} "), **ctx.params)
    if command.check is not None:
        try:
            command.check(given)
        except click.UsageError as error:
            error.ctx = ctx
            raise
    return command, given


def one_line(error: click.ClickException) -> str:
    """Say in one line what is not understood."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else "hidream"
    text = " ".join(f"{_said(error, ctx)}".split()).rstrip(".")
    return f"{path}: {text}; `{path} --help` says more"


def _said(error: click.ClickException, ctx: click.Context | None) -> str:
    match error:
        case click.exceptions.NoSuchCommand():
            return f"there is no command {error.command_name!r:.100}{_nearest_command(error.command_name, ctx)}"
        case click.NoSuchOption():
            return f"there is no flag {error.option_name:.100}{_nearest_flag(error.option_name, ctx)}"
        case click.MissingParameter(param=click.Argument() as argument):
            return f"{argument.make_metavar(ctx) if ctx else argument.name} is missing"
        case click.MissingParameter(param=click.Option() as option):
            return f"{max(option.opts, key=len)} is missing"
        case click.BadOptionUsage():
            return f"{error.option_name}: a value is missing"
        case click.BadParameter(param=click.Option() as option):
            return f"{max(option.opts, key=len)}: {error.message}"
        case click.BadParameter(param=click.Argument() as argument):
            return f"{argument.name}: {error.message}"
        case _:
            return _lower(error.message)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _nearest_command(name: str, ctx: click.Context | None) -> str:
    command = ctx.command if ctx is not None else None
    names = list(command.entries) if isinstance(command, Group) else []
    return suggestion(name, names) or f"; accepted: {', '.join(names)}"


def _nearest_flag(typed: str, ctx: click.Context | None) -> str:
    command = ctx.command if ctx is not None else None
    if not isinstance(command, Command):
        return ""
    if typed in command.elsewhere:
        return f"; here it is {command.elsewhere[typed]}"
    return suggestion(typed, [name for flag in command.flags for name in flag.opts if name.startswith("--")])


def suggestion(typed: str, names: Iterable[str]) -> str:
    """The end of an error that suggests the name that is nearest to what was typed; empty if none is near."""
    found = difflib.get_close_matches(typed.lower(), list(names), n=1, cutoff=0.6)
    return f"; the nearest is {found[0]}" if found else ""


def note(text: str) -> None:
    """Write a line for the user to standard error."""
    click.echo(f"hidream: {' '.join(text.split())}", file=sys.stderr)
