"""Mistakes that users make: each answer is one line that names the cure, and comes before any model is loaded."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hidream import cli

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")

MISTAKES = [
    # what is typed, what the answer says
    (["generat", "a fox"], "there is no command 'generat'; the nearest is generate"),
    (["draw", "a fox"], "there is no command 'draw'; accepted: generate, inspect"),
    (["generate", "a", "fox", "in", "snow"], 'put it in quotes: hidream generate "a fox in snow"'),
    (["generate"], 'prompt is absent; accepted: hidream generate "a fox in the snow"'),
    (["generate", "a fox", "--output", "x.png"], "there is no flag --output; here it is --out"),
    (["generate", "a fox", "--prompt", "x"], "--prompt; here it is the prompt itself, in quotes"),
    (["generate", "a fox", "--width", "512"], "--width; here it is --size WIDTHxHEIGHT"),
    (["generate", "a fox", "--scheduler", "euler"], "--scheduler; here it is --sampler"),
    (["generate", "a fox", "--step", "8"], "there is no flag --step; the nearest is --steps"),
    (["generate", "a fox", "--steps", "8.5"], "--steps: '8.5' is not a whole number; accepted: such as 28"),
    (["generate", "a fox", "--steps"], "--steps: a value is missing"),
    (["generate", "a fox", "--variant", "deve"], "accepted: dev, full, fast; the nearest is dev"),
    (["generate", "a fox", "--size", "1024"], "size is '1024'; accepted: width*height, each 256 to 2048"),
    (["generate", "a fox", "--seed", "random"], "--seed: 'random' is not a seed; accepted: -1 to 9999999999"),
    (["generate", "a fox", "--seed", "+1"], "--seed: +1 is a step from another image's seed; accepted: with --like"),
    (["generate", "a fox", "--seeds", "9-1"], "'9-1' is not a list of seeds; accepted: such as 1-9 or 3,7,11"),
    (["generate", "a fox", "--seeds", "1-3", "--seed", "7"], "--seeds is given beside --seed or -n; accepted: one"),
    (["generate", "a fox", "--seeds", "1-3", "--out", "x.png"], "several images are asked for; accepted: a folder"),
    (["generate", "a fox", "--lora", "ink"], "--lora names 'ink'; accepted: a LoRA from the folder that --lora-folder"),
    (["generate", "a fox", "--lora-folder", "loras", "--lora", "inc"], "--lora names 'inc'; accepted: ink"),
    (["generate", "a fox", "--mask", "there.png"], "mask is given without an image; accepted: a mask of the image"),
    (["generate", "a fox", "--image", "there.png", "--mask", "small.png"], "accepted: equal sizes"),
    (["generate", "a fox", "--image", "photo.txt"], "image is not an image that can be read"),
    (["generate", "a fox", "--out", "there.png"], "which is there already; accepted: a new file, or --force"),
    (["generate", "a fox", "--out", "x.jpg", "--format", "webp"], "--format is webp, and --out ends in .jpg"),
    (["generate", "a fox", "--out", "x.png", "--quality", "80"], "--quality is given, and PNG is lossless"),
    (["generate", ""], "prompt is empty; accepted: a text of 1 to 10000 characters"),
    (["generate", "a " * 5001], "prompt has 10002 characters; accepted: a text of 1 to 10000 characters"),
    (["generate", "a fox", "--negative", "a " * 5001], "--negative has 10002 characters"),
    (["generate", "--like", "odd.png"], "'steppes' is no parameter"),
    (
        ["generate", "a fox", "--seeds", "1,2", "--sheet", "s.xyz"],
        "--sheet is 's.xyz'; accepted: a name that ends in .png",
    ),
    (["generate", "a fox", "--seeds", "1,2", "--sheet", "sheet"], "--sheet is 'sheet'; accepted: a name that ends in"),
    (["generate", "a fox", "--sheet", "no/s.png"], "--sheet is 'no/s.png'; accepted: a file in a folder that exists"),
    (["generate", "a fox", "--seeds", "1-2000", "--sheet", "s.png"], "a sheet of 2,000 images is asked for; accepted"),
    (["generate", "a fox", "--seeds", "1-2000", "--grid", "steps=1"], "a sheet of 2,000 images is asked for; accepted"),
    (["generate", "--prompts", "-"], "standard input has no prompt"),
    (["generate", "--prompts", "absent.txt"], "--prompts: absent.txt cannot be read: No such file"),
    (["generate", "--prompts", "bad.csv"], "bad.csv line 1: 'stpes' is no parameter; the nearest is steps"),
    (["generate", "--prompts", "bad.jsonl"], "bad.jsonl line 2: size is 'big'; accepted: width*height"),
    (["generate", "a fox", "--grid", "steps"], "--grid is 'steps'; accepted: NAME=VALUE,VALUE such as steps=8,16,28"),
    (["generate", "a fox", "--grid", "steps=8,x"], "--grid steps: 'x' is not a whole number"),
    (["generate", "--like", "there.png"], "there.png does not say how it was made"),
    (["generate", "a fox", "--server", "localhost:8000"], "accepted: http://HOST or https://HOST"),
    (["generate", "a fox", "--server", "http://127.0.0.1:9"], "there is no API key; accepted"),
    (["generate", "a fox", "--server", "http://x", "--dtype", "fp16"], "--dtype is given with --server"),
    (["inspect", "photo.txt"], "photo.txt is not an image that can be read; accepted: an image of hidream"),
    (["keys", "revok", "x"], "there is no command 'revok'; the nearest is revoke"),
    (["keys", "revoke"], "ID is missing"),
    (["help", "generat"], "there is no command 'generat'; the nearest is generate"),
    (["completion", "powershell"], "shell: 'powershell' is not one of the choices; accepted: bash, zsh, fish"),
    (["bench", "--rounds", "0"], "'0' is not a number of rounds; accepted: 1 to 1000"),
    (["batch", "status", "photo.txt"], "photo.txt is not a batch; accepted: a file of `hidream batch submit`"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HIDREAM_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (256, 256)).save("there.png")
    Image.new("RGB", (64, 64)).save("small.png")
    _save_odd()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    (tmp_path / "photo.txt").write_text("no image")
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "ink.safetensors").write_bytes(b"")
    (tmp_path / "bad.csv").write_text("prompt,stpes\na fox,8\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a fox"}\n{"prompt": "a cat", "size": "big"}\n')
    return tmp_path


def _save_odd():
    """An image whose manifest has a parameter that there is not."""
    texts = PngInfo()
    for name, text in (("Software", "hidream"), ("version", "hidream-i1-dev/x"), ("seed", "7")):
        texts.add_text(name, text)
    Image.new("RGB", (256, 256)).save("odd.png", pnginfo=texts)
    digest = hashlib.sha256(Path("odd.png").read_bytes()).hexdigest()
    entry = {
        "file": "odd.png",
        "sha256": digest,
        "key": "k",
        "parameters": {"prompt": "ein Füchschen 狐", "steppes": 1},
    }
    Path("manifest.jsonl").write_text(f'{{"hidream_manifest": 1, "id": "a"}}\n{json.dumps(entry)}\n')


@pytest.mark.parametrize("texts", [{}, {"seed": "x"}, {"seed": "9" * 5000}])
def test_an_image_with_other_metadata_is_refused(capsys, texts):
    made = PngInfo()
    for name, text in ({"Software": "hidream", "version": "v"} | texts).items():
        made.add_text(name, text)
    Image.new("RGB", (8, 8)).save("odd.png", pnginfo=made)
    assert cli.main(["inspect", "odd.png"]) == 1
    assert "odd.png is not an image that can be read" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors as a POSIX shell does")
@pytest.mark.parametrize(
    ("typed", "status", "said"),
    [
        ("generate --prompts - <&-", 1, "standard input has no prompt"),
        ("models rm dev <&-", 1, "the Hub's cache has no"),
        ("--help >&-", 0, ""),
        ("generate --prompts p.txt --server http://127.0.0.1:1 >&- 2>&-", 1, ""),
        pytest.param("--help >/dev/full", 1, "hidream: [Errno 28] No space left", marks=FULL),
        pytest.param("models list >/dev/full", 1, "hidream: [Errno 28] No space left", marks=FULL),
    ],
)
def test_streams_may_be_closed_or_full(folder, typed, status, said):
    (folder / "p.txt").write_text("a fox")
    line = f'exec "{sys.executable}" -m hidream.cli {typed}'
    ended = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == status
    assert said in ended.stderr
    assert ended.stderr.count("\n") == bool(said)


@pytest.mark.integration
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_every_text_can_be_written_in_every_encoding(folder, encoding):
    environ = os.environ | {"PYTHONIOENCODING": encoding}
    for typed in (["generate", "--help"], ["inspect", "odd.png"]):
        command = [sys.executable, "-m", "hidream.cli", *typed]
        ended = subprocess.run(command, env=environ, capture_output=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize(("typed", "said"), MISTAKES, ids=[" ".join(typed)[:60] for typed, _ in MISTAKES])
def test_an_answer_names_the_cure(capsys, monkeypatch, typed, said):
    monkeypatch.setattr("hidream.commands.backends.Local.__init__", None)  # nothing is loaded before the answer
    try:
        status = cli.main(typed)
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr()
    assert status in (1, 2)
    assert printed.out == ""
    assert said in printed.err, printed.err
    assert printed.err.startswith("hidream")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        (["generate", "a fox", "--variant", "Dev"], "variant", "dev"),
        (["generate", "a fox", "--variant", "FULL"], "variant", "full"),
        (["generate", "a fox", "--mode", "Turbo"], "mode", "turbo"),
        (["generate", "a fox", "--dtype", "fp16"], "compute__dtype", "float16"),
        (["generate", "a fox", "--dtype", "bf16"], "compute__dtype", "bfloat16"),
        (["generate", "a fox", "--memory-gb", "12GB"], "compute__memory_gb", "12"),
        (["generate", "a fox", "--memory", "12 GB"], "compute__memory_gb", "12"),
        (["generate", "a fox", "-n", "4"], "num_images", 4),
        (["generate", "a fox", "--negative-prompt", "red"], "negative_prompt", "red"),
        (["generate", "a fox", "--num-inference-steps", "8"], "steps", 8),
        (["generate", "a fox", "--guidance-scale=4"], "guidance", 4.0),
        (["info", "--plan", "--memory", "12GB,16"], "memory", [12.0, 16.0]),
    ],
)
def test_what_people_type_is_understood(typed, name, value):
    _, given = cli.parse(typed)
    assert getattr(given, name) == value


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["info", "--plan", "--host", "32"],
            "hidream: --host is now --host-memory; the old name works in this release",
        ),
        (
            ["generate", "x", "--loras", "f"],
            "hidream: --loras is now --lora-folder; the old name works in this release",
        ),
    ],
)
def test_a_former_name_works_with_a_warning(capsys, typed, said):
    _, given = cli.parse(typed)
    assert getattr(given, "host_memory", None) == 32 or given.models__loras == "f"
    assert said in capsys.readouterr().err


def test_a_value_that_looks_like_a_former_name_stays_as_it_is(capsys):
    _, given = cli.parse(["generate", "x", "--negative", "--loras"])
    assert given.negative_prompt == "--loras"
    _, given = cli.parse(["generate", "--", "--loras"])
    assert given.prompts == ("--loras",)
    assert capsys.readouterr().err == ""


def test_hidream_alone_and_help_show_the_help(capsys):
    for typed in ([], ["--help"], ["help"]):
        if typed == ["help"]:
            assert cli.main(typed) == 0
        else:
            with pytest.raises(SystemExit) as ended:
                cli.main(typed)
            assert ended.value.code == 0
        assert "  generate    generate images from prompts" in capsys.readouterr().out
    assert cli.main(["help", "keys", "create"]) == 0
    assert "hidream keys create --name laptop" in capsys.readouterr().out


@pytest.mark.integration
def test_the_shells_complete_commands_flags_and_choices(capsys, monkeypatch):
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        assert "_HIDREAM_COMPLETE" in capsys.readouterr().out
    monkeypatch.setenv("_HIDREAM_COMPLETE", "zsh_complete")
    for words, position, expected in (
        ("hidream gen", 1, "generate"),
        ("hidream generate --mo", 2, "--mode"),
        ("hidream generate x --mode t", 4, "turbo"),
        ("hidream keys rot", 2, "rotate-webhook"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(position))
        assert cli.main([]) == 0
        assert expected in capsys.readouterr().out.split("\n")


@pytest.mark.integration
def test_a_reader_that_leaves_ends_the_command_silently():
    command = f"{sys.executable} -m hidream.cli help generate | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: hidream generate")
    assert done.stdout.split()[-1] in ("0", "141")  # the whole help may fit into the pipe
    assert done.stderr == ""
