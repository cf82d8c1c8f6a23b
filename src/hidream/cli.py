"""The command line: `main` parses a line, loads the settings, runs the command, and turns errors into an exit status.

The commands are in `commands/`, whose `index` lists them. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from hidream import logs
from hidream.commands import grammar
from hidream.commands.exit_status import ExitStatus
from hidream.commands.grammar import Command, Given, note
from hidream.commands.index import TOP
from hidream.commands.setting_flags import settings_of
from hidream.commands.shell import COMPLETE_VARIABLE
from hidream.errors import ConfigurationError, HiDreamError
from hidream.missing import importing
from hidream.settings import private, sources
from hidream.settings.tables import Settings

logger = logging.getLogger(__name__)

SERVICES = ("serve", "api", "worker")
"""Commands that a service manager keeps running; their exit status says whether a restart would help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default that of this process, and return its exit status (`ExitStatus`).

    SystemExit ends it after `--help`, and if the command line is not understood.
    """
    if COMPLETE_VARIABLE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(TOP, {}, "hidream", COMPLETE_VARIABLE, os.environ[COMPLETE_VARIABLE])
    try:
        _prepare_streams()
        command, given = parse(argv)
        return _run(command, given)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at the end has a reader
        return ExitStatus.BROKEN_PIPE
    except OSError as error:  # such as a full disk or a missing permission: the system's message is sufficient
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _prepare_streams() -> None:
    """Open streams that the caller has closed, to nowhere.

    What the encoding of standard output does not have is written as escapes, as on standard error.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def parse(argv: Sequence[str] | None = None) -> tuple[Command, Given]:
    """Parse a command line; `settings_of` extracts the settings. Raises SystemExit, with a line on standard error."""
    try:
        return grammar.parse(TOP, sys.argv[1:] if argv is None else argv)
    except click.ClickException as error:
        click.echo(grammar.one_line(error), err=True)
        raise SystemExit(ExitStatus.USAGE) from None
    except click.exceptions.Exit as end:
        raise SystemExit(end.exit_code) from None


def _run(command: Command, given: Given) -> int:
    try:
        config = sources.load(os.environ, settings_of(given))
        level = logging.INFO if command.service or given.verbose else logging.WARNING
        logs.configure(config.server.log_format, level=level)
        _warn_about_ignored_variables()
        if given.command in ("serve", "api") or (given.command == "worker" and not given.with_parent):
            _keep_private(config)
        with importing(f"`hidream {given.command}`", command.extras_for(given) or "client"):
            status = command.run(given, config)
        click.echo(nl=False)  # flushes: a full disk, or a reader that is gone, is noticed here
        return status
    except HiDreamError as error:
        hopeless = isinstance(error, ConfigurationError) and given.command in SERVICES
        return _fail(error.message, ExitStatus.CONFIGURATION if hopeless else ExitStatus.FAILED)
    except click.ClickException as error:
        click.echo(grammar.one_line(error), err=True)
        return ExitStatus.USAGE
    except (RuntimeError, MemoryError) as error:
        from hidream.worker.failure import TOO_LARGE, out_of_memory

        if not out_of_memory(error):
            raise
        return _fail(TOO_LARGE)


def _warn_about_ignored_variables() -> None:
    if names := sources.ignored_variables(os.environ):
        reason = "Kubernetes or Docker set them; `enableServiceLinks: false` in the pod's spec prevents that"
        logger.warning("environment_ignored names=%s reason=%s", ",".join(names), reason)


def _keep_private(config: Settings) -> None:
    private.make_home(config.home)
    for path, cure in private.exposed(config, os.environ):
        logger.warning("others_may_read path=%s cure=%s", path, cure)


def _fail(message: str, status: int = ExitStatus.FAILED) -> int:
    note(message)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
