"""`hidream generate` with many images: a folder, sheets, grids, JSON, pipes, images like others."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from PIL import Image

from hidream import cli
from hidream.commands import backends, sheets
from hidream.commands.jobs import Job

SMALL = ["--size", "256*256", "--steps", "1"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def generated(monkeypatch):
    """The prompts and seeds that models have been asked for."""
    asked = []
    keywords = backends._keywords

    def noted(job):
        asked.append((job.parameters["prompt"], job.parameters["seed"]))
        return keywords(job)

    monkeypatch.setattr(backends, "_keywords", noted)
    return asked


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_file_of_prompts_becomes_a_folder_and_nothing_is_generated_twice(folder, capsys, generated):
    (folder / "p.csv").write_text("prompt,seed\na fox,7\nan owl,\na fox,8\n")
    typed = ["generate", "--prompts", "p.csv", *SMALL, "--out", "images", "--json"]
    assert cli.main(typed) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    entries = lines(printed.out)
    assert sorted(entry["file"] for entry in entries) == [
        "images/0001-a-fox.png",
        "images/0002-an-owl.png",
        "images/0003-a-fox.png",
    ]
    for entry in entries:
        data = (folder / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        with Image.open(io.BytesIO(data)) as image:
            assert (image.size, image.text["seed"]) == ((256, 256), str(entry["seed"]))
            assert image.text["version"] == entry["version"]
    assert len(generated) == 3
    before = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    assert cli.main(typed) == 0
    assert all(entry["there_already"] for entry in lines(capsys.readouterr().out))
    (folder / "images" / "0003-a-fox.png").unlink()
    assert cli.main(typed) == 0
    assert len(generated) == 4
    assert generated[-1] == ("a fox", 8)
    assert (folder / "images" / "0003-a-fox.png").read_bytes() == before["0003-a-fox.png"]


@pytest.mark.slow
def test_one_image_alone_is_that_of_a_folder_and_of_a_pipe(folder, capfdbinary):
    assert cli.main(["generate", "a fox", "--seeds", "7,8", *SMALL, "--out", "images"]) == 0
    assert cli.main(["generate", "a fox", "--seed", "7", *SMALL, "--out", "one.png"]) == 0
    several = (folder / "images" / "0001-a-fox.png").read_bytes()
    assert (folder / "one.png").read_bytes() == several
    capfdbinary.readouterr()
    assert cli.main(["generate", "a fox", "--seed", "7", *SMALL, "--out", "-"]) == 0
    assert capfdbinary.readouterr().out == several


def test_a_name_that_was_not_chosen_is_numbered(folder, capsys):
    (folder / "out.png").write_bytes(b"the user's")
    assert cli.main(["generate", "a fox", *SMALL, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["file"] == "out-2.png"
    assert entry["parameters"]["seed"] == entry["seed"]
    assert (folder / "out.png").read_bytes() == b"the user's"
    assert cli.main(["generate", "a fox", *SMALL, "--out", "out.png", "--force"]) == 0
    assert (folder / "out.png").read_bytes() != b"the user's"


@pytest.mark.slow
def test_seeds_make_a_contact_sheet_and_axes_a_grid(folder, capsys):
    assert cli.main(["generate", "a fox", "--seeds", "1-3", *SMALL, "--sheet", "sheet.png"]) == 0
    assert "out: 3 images" in capsys.readouterr().out
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (2 * 396 + 12, 2 * 426 + 12)
    axes = ["--grid", "steps=2,3", "--grid", "shift=1,3,6"]
    assert cli.main(["generate", "a fox", "--seed", "7", "--size", "256x256", *axes, "--out", "grid"]) == 0
    with Image.open("grid/grid.png") as sheet:
        assert sheet.width > 2 * 396
        assert sheet.height == 12 + 30 + 3 * 396
        images = [sheet.getpixel((sheet.width - 200, 42 + 396 * row + 190)) for row in range(3)]
        assert (255, 255, 255) not in images
    entries = lines((folder / "grid" / "manifest.jsonl").read_text())[1:]
    assert len({entry["sha256"] for entry in entries}) == 6


@pytest.mark.parametrize("several", [["--seeds", "7,8"], ["--seed", "7", "-n", "2"]])
def test_seeds_have_rows_of_their_own_in_a_grid(folder, several):
    assert cli.main(["generate", "a fox", *several, *SMALL[:2], "--grid", "steps=1,2", "--out", "grid"]) == 0
    with Image.open("grid/grid.png") as sheet:
        assert sheet.height == 12 + 30 + 2 * 396
        left = sheet.width - 2 * 396
        shown = [
            hashlib.sha256(sheet.crop((left + 396 * x, 42 + 396 * y, left + 396 * x + 384, 426 + 396 * y)).tobytes())
            for y in range(2)
            for x in range(2)
        ]
    assert len({each.hexdigest() for each in shown}) == 4


def test_the_rows_of_a_grid_say_what_their_images_share():
    def job(cell, seed, prompt="a fox"):
        return Job({"prompt": prompt, "seed": seed}, "", f"{cell} {seed} {prompt}", cell, "x.png")

    labels = sheets.row_labels
    assert labels([job((c,), s) for c in "ab" for s in (7, 8)], []) == ["seed 7", "seed 8"]
    assert labels([job((c,), s) for c, s in (("a", 1), ("a", 2), ("b", 3), ("b", 4))], []) == ["", ""]  # random seeds
    assert labels([job((c, d), 7) for c in "ab" for d in "xy"], ["shift"]) == ["shift x", "shift y"]
    assert labels([job((c,), 7, p) for p in ("a fox", "an owl") for c in "ab"], []) == ["a fox", "an owl"]


@pytest.mark.slow
def test_like_takes_the_parameters_of_an_image_and_the_next_seed(folder, capsys):
    assert cli.main(["generate", "a fox", "--seeds", "7,8", *SMALL, "--mode", "turbo", "--out", "out"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", "out/0001-a-fox.png", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["seed"], facts["size"], facts["variant"], facts["mode"]) == (7, "256*256", "dev", "turbo")
    assert facts["parameters"]["prompt"] == "a fox"
    assert cli.main(["generate", "--like", "out/0001-a-fox.png", "--seed", "+1", "--out", "next.png"]) == 0
    assert (folder / "next.png").read_bytes() == (folder / "out" / "0002-a-fox.png").read_bytes()
    assert cli.main(["generate", "--like", "next.png"]) == 1  # no manifest beside it has its prompt
    assert "next.png does not say its prompt; accepted: a prompt beside --like" in capsys.readouterr().err
    typed = ["generate", "a fox", "--like", "next.png", "--steps", "1", "--out", "again.png"]
    assert cli.main(typed) == 0
    assert (folder / "again.png").read_bytes() == (folder / "next.png").read_bytes()


@pytest.mark.slow
def test_one_bad_image_leaves_the_others(folder, capsys):
    (folder / "p.jsonl").write_text(
        '{"prompt": "a fox", "seed": 7}\n{"prompt": "an owl", "seed": 7, "negative_prompt": "red"}\n'
    )
    assert cli.main(["generate", "--prompts", "p.jsonl", *SMALL]) == 3
    printed = capsys.readouterr()
    assert "1 of 2 images failed, the first: p.jsonl line 2: negative_prompt is 'red'" in printed.err
    assert "out: 1 images" in printed.out


@pytest.mark.integration
def test_an_interrupted_run_goes_on(folder):
    (folder / "p.txt").write_text("\n".join(f"a fox {i}" for i in range(6)))
    typed = [sys.executable, "-m", "hidream.cli", "generate", "--prompts", "p.txt", "--size", "256x256", "--json"]
    with subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.readline()  # the first image is there
        run.send_signal(signal.SIGINT)
        _, error = run.communicate(timeout=120)
    assert run.returncode == 130
    assert "the same command generates the rest" in error
    assert "Traceback" not in error
    done = lines((folder / "out" / "manifest.jsonl").read_text())[1:]
    assert 1 <= len(done) < 6
    again = subprocess.run(typed, capture_output=True, text=True, check=True)
    entries = lines(again.stdout)
    assert len(entries) == 6
    assert sum(entry.get("there_already", False) for entry in entries) == len(done)
    assert not list((folder / "out").glob("*.part"))


def read(terminal):
    """What a terminal shows; nothing at its end, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


@pytest.mark.integration
def test_a_terminal_shows_progress_and_a_pipe_does_not(folder):
    typed = [sys.executable, "-m", "hidream.cli", "generate", "a fox", *SMALL, "--seeds", "1-2"]
    main, terminal = pty.openpty()
    with subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=terminal, env=os.environ | {"TERM": "xterm"}) as run:
        os.close(terminal)
        shown = b"".join(iter(lambda: read(main), b""))  # until the command has closed its end
        out, _ = run.communicate(timeout=120)
    os.close(main)
    assert run.returncode == 0
    assert b"loading hidream-i1-dev" in shown
    assert b"2/2" in shown
    assert out == b"out: 2 images; out/manifest.jsonl says how each was made\n"
