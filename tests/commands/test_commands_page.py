"""docs/COMMANDS.md is what the code says, and what it shows is understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from commands_page import filled

from hidream import cli
from hidream.commands.exit_status import ExitStatus

PAGE = Path(__file__).parents[2] / "docs" / "COMMANDS.md"


def test_the_page_is_that_of_the_commands():
    page = PAGE.read_text()
    assert filled(page) == page, "run `make tables`"
    for status in ExitStatus:
        assert f"| {int(status)} | {status.about} |" in page


def test_the_commands_of_the_page_are_understood():
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("hidream ")]
    assert len(lines) > 40
    for line in lines:
        cli.parse(shlex.split(line.partition(" | ")[0], comments=True)[1:])
