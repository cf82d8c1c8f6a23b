"""What the exit status of `hidream` means. docs/COMMANDS.md has the same table; a test compares them."""

from __future__ import annotations

from enum import IntEnum

from hidream.errors import ConfigurationError, DatabaseGone


class ExitStatus(IntEnum):
    """The exit statuses of all commands; `about` says what each one means."""

    about: str

    def __new__(cls, value: int, about: str) -> ExitStatus:
        """Create a status with its meaning."""
        status = int.__new__(cls, value)
        status._value_ = value
        status.about = about
        return status

    OK = 0, "done"
    FAILED = 1, "an error, which standard error names in one line; or a check that found something wrong"
    USAGE = 2, "the command line is not understood; nothing was done"
    PARTLY = 3, "some of several images failed; the others are there, and the same command tries the rest again"
    DATABASE_GONE = DatabaseGone.exit_status, "a service lost its database file"
    CONFIGURATION = ConfigurationError.exit_status, "a service cannot start with this configuration"
    INTERRUPTED = 130, "interrupted by Ctrl-C (SIGINT)"
    BROKEN_PIPE = 141, "the reader of standard output is gone, as in a pipe to `head`"
