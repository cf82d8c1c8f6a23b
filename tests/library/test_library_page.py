"""docs/LIBRARY.md and README.md: their Python runs as it stands, in order, with nano.

Blocks with `needs-files` after the language need a checkpoint of the real model; they are only compiled.
"""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```python ?(\S*)\n(.+?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_library_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for mark, lines in blocks("docs/LIBRARY.md"):
        assert mark in ("", "needs-files")
        code = compile(lines, "docs/LIBRARY.md", "exec")
        if not mark:
            exec(code, names)
    printed = capsys.readouterr().out
    said = re.findall(r"^    (\w+ - .+)$", (ROOT / "docs/LIBRARY.md").read_text(), re.MULTILINE)
    assert said
    assert all(line in printed for line in said)
    assert {path.name for path in tmp_path.iterdir()} == {"fox.png", "fox.jpg", *(f"{i}.png" for i in range(4))}


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
