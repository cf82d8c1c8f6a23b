"""Packages that are not installed: an error in one line with the command that installs them. Standard library only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hidream.errors import MissingPackage


@contextlib.contextmanager
def importing(what: str, extras: str) -> Iterator[None]:
    """Turn the failed import of a package that is not ours into a MissingPackage; `what` needs these `extras`."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "hidream"):
            raise
        raise MissingPackage(
            f"{what} needs {package}, which is not installed; install it with: pip install 'hidream[{extras}]'"
        ) from error
