"""What commands print: their result on standard output, as text or as JSON, and everything else on standard error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence

import click

from hidream.commands.grammar import Given


def result(given: Given, data: object, text: str | Iterable[str]) -> None:
    """Print the result of a command: `data` as one JSON value with `--json`, else the lines of `text`."""
    if given.json:
        json_line(data)
        return
    for line in [text] if isinstance(text, str) else text:
        click.echo(line)


def json_line(data: object) -> None:
    """Print one JSON value in one line."""
    click.echo(json.dumps(data, ensure_ascii=False, default=str))


def table(rows: Sequence[Sequence[object]]) -> Iterable[str]:
    """Align the columns of rows, the first of which is the head."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts]


def in_one_line(message: str) -> str:
    """Replace line breaks and runs of spaces by one space."""
    return " ".join(message.split())


def styled(text: str, colour: str) -> str:
    """Colour a text, unless NO_COLOR is set (https://no-color.org); without a terminal click removes it."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)
