"""The command line: a picture in a file, errors in one line, and a quick start."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from hidream import cli


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP")])
def test_generate_writes_the_picture(home, capsys, name, kind):
    out = home / name
    assert (
        cli.main(["generate", "3d a frog", "--size", "640*512", "--seed", "7", "--steps", "2", "--out", str(out)]) == 0
    )
    with Image.open(out) as picture:
        assert (picture.format, picture.size) == (kind, (640, 512))
    printed = capsys.readouterr()
    assert "seed 7" in printed.out
    assert "denoise" in printed.out
    assert "2/2" in printed.err  # the progress bar


def test_info_names_models_and_what_is_missing(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "hidream-i1-dev/" in printed
    assert "15,390,592 parameters" in printed
    assert "fast      not served" in printed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "x", "--size", "abc"], "size is 'abc'"),
        (["generate", "x", "--out", "x.bmp"], "--out is 'x.bmp'"),
        (["generate", " "], "prompt is empty"),
        (["generate", "x", "--steps", "0"], "steps is 0"),
        (["generate", "x", "--variant", "fast"], "no variant fast"),
        (["generate", "x", "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_errors_are_one_line(capsys, arguments, named):
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_help_imports_nothing_heavy():
    code = "import sys, hidream.cli; print({'torch', 'diffusers', 'sqlalchemy', 'fastapi'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
