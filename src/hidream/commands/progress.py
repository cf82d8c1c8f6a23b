"""Progress on standard error: one display, only on terminals, with rich. Where there is no terminal, nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

OnBytes = Callable[[str, int, int], None]


@dataclass(slots=True)
class Bar:
    """One bar: how much of a total is done."""

    display: Progress | None
    task: TaskID | None

    def show(self, text: str | None = None, *, done: float | None = None, total: float | None = None) -> None:
        """Change what is shown."""
        if self.display is not None and self.task is not None:
            self.display.update(self.task, description=text, completed=done, total=total)


@contextmanager
def bar(text: str, unit: str) -> Iterator[Bar]:
    """Show a bar without a total, which `Bar.show` sets; it disappears at the end."""
    if not sys.stderr.isatty():
        yield Bar(None, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    columns += [MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield Bar(display, display.add_task(text, total=None))


@contextmanager
def bytes_bar() -> Iterator[OnBytes]:
    """Show how many bytes of a file are done."""
    if not sys.stderr.isatty():
        yield lambda name, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task("", total=None)
        yield lambda name, done, total: display.update(task, description=name, completed=done, total=total)
