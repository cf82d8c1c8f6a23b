"""docs/LIBRARY.md, README.md and the quick starts: their Python runs as it stands, in order, with nano.

Blocks with `needs-files` after the language need a checkpoint of the real model; they are only compiled.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from hidream import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


PEERS = ("diffusers", "replicate", "openai")
"""Whose lines the pages show beside ours; these are only compiled."""


def blocks(page: str) -> list[tuple[str, str]]:
    return in_python((ROOT / page).read_text())


def in_python(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```python ?(\S*)\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_library_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for mark, lines in blocks("docs/LIBRARY.md"):
        assert mark in ("", "needs-files", *PEERS)
        code = compile(lines, "docs/LIBRARY.md", "exec")
        if not mark:
            exec(code, names)
    printed = capsys.readouterr().out
    said = re.findall(r"^    (\w+ - .+)$", (ROOT / "docs/LIBRARY.md").read_text(), re.MULTILINE)
    assert said
    assert all(line in printed for line in said)
    several = {path.name for path in tmp_path.glob("fox-*.png")}
    assert len(several) == 4
    written = {"fox.png", "fox.jpg", "summer.png", *(f"{i}.png" for i in range(4))}
    assert {path.name for path in tmp_path.iterdir()} == written | several


def test_the_ten_tasks_have_as_many_lines_as_their_table_says():
    page = (ROOT / "docs/LIBRARY.md").read_text()
    tasks = page.partition("## Ten everyday tasks")[2].partition("\n## ")[0]
    table = re.findall(r"^\| (\d+)\. (.+?) \| (.+) \|$", tasks, re.MULTILINE)
    sections = re.findall(r"^### (\d+)\. (.+?)\n(.+?)(?=^### |\Z)", tasks, re.MULTILINE | re.DOTALL)
    assert [row[0] for row in table] == [section[0] for section in sections] == [str(n + 1) for n in range(10)]
    for (_, task, cells), (_, title, section) in zip(table, sections, strict=True):
        assert task == title[0].lower() + title[1:]
        lines = dict.fromkeys(("hidream", *PEERS), "–")
        for mark, code in in_python(section):
            library = mark if mark in PEERS else "hidream"
            counted = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
            lines[library] = str(len(counted))
        assert cells.split(" | ") == list(lines.values()), task


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    lines = [lines for _, lines in blocks("README.md") if "pipe" in lines]
    assert len(lines) == 2
    for each in lines:
        exec(compile(each, "README.md", "exec"), names)
    for name in ("fox.png", "0.png", "1.png", "2.png"):
        with Image.open(tmp_path / name) as image:
            assert image.text["seed"] == "7"


@pytest.mark.parametrize("page", ["docs/start/ml.md", "docs/start/contributor.md"])
def test_the_quick_starts_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for mark, lines in blocks(page):
        code = compile(lines, page, "exec")
        if not mark:
            exec(code, names)
    assert "pipe" in names


def test_the_artists_commands_draw(tmp_path, monkeypatch):
    page = (ROOT / "docs/start/artist.md").read_text()
    commands = [line for line in re.findall(r"^hidream (generate .+)$", page, re.MULTILINE) if "--model" not in line]
    assert len(commands) == 4
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path))
    for command in commands:
        assert cli.main(shlex.split(command)) == 0
    sizes = {}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            sizes[path.stem] = image.size
    assert sizes == {"cat": (1024, 768), "other": (1024, 1024), "snow": (1024, 768), "hat": (1024, 768)}
