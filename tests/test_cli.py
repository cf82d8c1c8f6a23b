"""The command line: an image in a file, errors in one line, and a quick start."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from safetensors.torch import save_file

from hidream import cli
from hidream.commands.setting_flags import MODELS
from hidream.model.checkpoint.checkpoint import embedded
from hidream.settings import sources
from hidream.store import keys
from hidream.store.database import Database
from hidream.store.keys import Limits, Scope
from hidream.types import Variant


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "PNG"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("b.jpg", "JPEG"), ("c.webp", "WEBP"), ("d.avif", "AVIF"))
        ),
    ],
)
def test_generate_writes_the_image(home, capsys, name, kind):
    out = home / name
    assert (
        cli.main(["generate", "3d a frog", "--size", "640*512", "--seed", "7", "--steps", "2", "--out", str(out)]) == 0
    )
    with Image.open(out) as image:
        assert (image.format, image.size) == (kind, (640, 512))
    printed = capsys.readouterr()
    assert "seed 7" in printed.out
    assert "denoise" in printed.out
    assert printed.err == ""  # no progress, and no log, where there is no terminal


@pytest.mark.integration
def test_the_collector_leaves_what_was_loaded_alone_and_goes_on_after_an_error():
    code = (
        "import gc, sys; from hidream import cli\n"
        "status = cli.main(['generate', 'x', '--model', '/nowhere'])\n"
        "print(status, gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 True True\n"


@pytest.mark.slow
def test_an_image_decides_the_size_that_is_not_said(home, capsys):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (640, 360), (200, 30, 60)).save(home / "in.jpg", exif=exif)
    asked = ["generate", "3d a frog", "--image", "in.jpg", "--seed", "7", "--steps", "2", "--strength", "0.5"]
    for said, size in (([], (360, 640)), (["--size", "256*320"], (256, 320))):
        assert cli.main([*asked, *said, "--force", "--out", "out.png"]) == 0
        with Image.open(home / "out.png") as image:
            assert image.size == size


@pytest.mark.slow
def test_generate_draws_in_the_mode_that_is_asked(home, capsys):
    asked = ["generate", "3d a frog", "--size", "256*256", "--seed", "7", "--steps", "8"]
    for mode in ("exact", "turbo"):
        assert cli.main([*asked, "--mode", mode, "--out", str(home / f"{mode}.png")]) == 0
        assert f"/{mode}" in capsys.readouterr().out
    with Image.open(home / "exact.png") as exact, Image.open(home / "turbo.png") as turbo:
        versions = [image.text["version"].split("/") for image in (exact, turbo)]
        assert [each[2].split("-")[0] for each in versions] == ["exact", "turbo"]
        assert turbo.tobytes() != exact.tobytes()


@pytest.mark.slow
def test_info_names_models_and_what_is_missing(capsys, monkeypatch):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert all(f"hidream-i1-{variant}/" in printed for variant in Variant)
    assert printed.count("12,626,560 parameters") == len(Variant)
    monkeypatch.setenv("HIDREAM_MODEL", str(embedded(Variant.DEV).folder))
    assert cli.main(["info"]) == 0
    assert "fast      not served" in capsys.readouterr().out


def test_the_plan_is_of_the_file_that_is_named(capsys, tmp_path):
    """Eight bits of nano are 14 MB; the published transformer is 34 GB."""
    nano = embedded(Variant.DEV).part("transformer")
    file = tmp_path / "x.gguf"
    assert cli.main(["convert", str(nano), str(file), "--type", "Q8_0"]) == 0
    (tmp_path / "config.json").write_text((nano / "config.json").read_text())
    capsys.readouterr()
    assert cli.main(["info", "--plan", "--memory", "24", "--model", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"transformer: {file}\n1024*1024, 28 steps")
    assert re.search(r"transformer.blocks +stored +device +0.0 GB", printed)
    assert re.search(r"text_encoder_3 +compute +sequential +9.5 GB", printed)  # not there: the published one's
    assert cli.main(["info", "--plan", "--memory", "24", "--variant", "full", "--model", "/nowhere"]) == 1
    assert "/nowhere does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_info_lists_loras_and_why_some_cannot_be_used(home, capsys, monkeypatch):
    layers = ("double_stream_blocks.0.block.attn1.to_q", "blocks.0.attn")
    pairs = {
        f"{layer}.lora_{side}.weight": torch.ones(shape)
        for layer in layers
        for side, shape in (("A", (1, 192)), ("B", (192, 1)))
    }
    (home / "loras").mkdir()
    save_file(pairs, home / "loras" / "ink.safetensors")
    (home / "loras" / "torn.safetensors").write_bytes(b"")
    monkeypatch.setenv("HIDREAM_MODELS_LORAS", str(home / "loras"))
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out.splitlines()
    left_out = "1 of its 2 layers are not in this model (blocks.0.attn)"
    assert printed.count(f"          LoRA ink: peft, 1 of 2 layers matched; {left_out}") == len(Variant)
    torn = [line for line in printed if line.startswith("          LoRA torn: cannot be used: torn.safetensors cannot")]
    assert len(torn) == len(Variant)
    asked = [
        "generate",
        "x",
        "--size",
        "256*256",
        "--steps",
        "1",
        "--lora-folder",
        str(home / "loras"),
        "--out",
        "x.png",
    ]
    assert cli.main([*asked, "--lora", "ink:0.1"]) == 0
    assert f"hidream: the LoRA ink is used in part: {left_out}\n" in capsys.readouterr().err
    assert cli.main([*asked, "--force", "--lora", "torn"]) == 1
    assert "hidream: loras names 'torn', which cannot be used: torn.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["generate", "x", "--size", "abc"], "size is 'abc'"),
        (["generate", "x", "--out", "x.bmp"], "--out is 'x.bmp'"),
        (["generate", "x", "--out", "no-such-folder/x.png"], "--out is 'no-such-folder/x.png'"),
        (["generate", " "], "prompt is empty"),
        (["generate", "x", "--steps", "0"], "steps is 0"),
        (["generate", "x", "--strength", "nan"], "strength is nan"),
        (["generate", "x", "--image", "/nowhere"], "'/nowhere' cannot be read"),
        (["generate", "x", "--image", __file__], "image is not an image that can be read"),
        (["generate", "x", "--model", "/nowhere"], "/nowhere"),
        (["generate", "x", "--model", ""], "--model is ''; accepted: a path"),
        (["generate", "x", "--memory-gb", "-2.5"], "--memory-gb is '-2.5'; accepted: a number, 0, or 1 to 100,000"),
        (["generate", "x", "--device", "cpu", "--memory-gb", "2"], "3 GB are set aside for the system"),
        (["generate", "x", "--threads", "100000"], "--threads is '100000'; accepted: a whole number, 0 to 1,024"),
        (["serve", "--port", "70000"], "--port is '70000'; accepted: a whole number, 0 to 65,535"),
        (["serve", "--host", ""], "--host is ''; accepted: an address"),
        (["worker", "--device", "meta"], "--device is 'meta'; accepted: auto, cpu, mps, cuda or cuda:N"),
        (["info", "--plan", "--storage", "int3"], "--storage is 'int3'; accepted: auto, compute, stored"),
        (["info", "--plan", "--size", "9*9"], "size is '9*9'; accepted: width*height, each 256 to 2048"),
        (["info", "--plan", "--storage", "fp8", "--device", "mps"], "storage is fp8, which mps does not support"),
        (["convert", "/nowhere", "x" * 300], "File name too long"),
    ],
)
def test_errors_are_one_line(capsys, typed, named):
    assert cli.main(typed) == (78 if typed[0] in cli.SERVICES else 1)
    error = capsys.readouterr().err
    assert error.startswith("hidream: ")
    assert named in error
    assert error.count("\n") == 1


@pytest.mark.integration
def test_a_command_that_is_interrupted_ends_as_shells_expect(home):
    os.mkfifo("image.png")
    code = (
        "import signal, hidream.cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background jobs have not
        "raise SystemExit(hidream.cli.main(['generate', 'a', '--image', 'image.png', '--out', 'a.png']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        with Path("image.png").open("wb"):  # which waits until the command reads it
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        assert process.stderr.read() == b""


def test_settings_of_the_environment_are_checked(capsys, monkeypatch):
    monkeypatch.setenv("HIDREAM_COMPUTE_MEMORY_GB", "0.1")
    assert cli.main(["info"]) == 1
    assert "HIDREAM_COMPUTE_MEMORY_GB is '0.1'; accepted: a number, 0, or 1 to" in capsys.readouterr().err


@pytest.mark.integration
def test_what_kubernetes_puts_into_the_environment_is_passed_over_and_told_once(capsys, monkeypatch):
    monkeypatch.setenv("HIDREAM_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HIDREAM_SERVER_PORT", "tcp://10.0.0.1:8000")
    code = "import sys; from hidream import cli; sys.exit(cli.main(['keys', 'create', '--name', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert "WARNING hidream.cli environment_ignored names=HIDREAM_SERVER_PORT,HIDREAM_SERVICE_HOST" in line
    assert "enableServiceLinks: false" in line


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["serve", "--prot", "8000"], "hidream serve: there is no flag --prot; the nearest is --port; "),
        (
            ["keys", "create", "--nme=x"],
            "hidream keys create: there is no flag --nme; the nearest is --name",
        ),
        (["api", "zzz"], "hidream api: unexpected argument: zzz; `hidream api --help` says more"),
    ],
)
def test_an_unknown_flag_gets_the_nearest_one(capsys, typed, named):
    with pytest.raises(SystemExit) as ended:
        cli.main(typed)
    error = capsys.readouterr().err
    assert (ended.value.code, error.startswith(named), error.count("\n")) == (2, True, 1), error


FLAGS = {
    "generate": ["size", "seed", "out", "negative", "steps", "guidance", "shift", "image", "strength", "mask", "lora"],
    "info": ["memory", "host-memory", "size", "bits"],
    "convert": ["to", "type", "shard-size"],
}
SETTINGS = [
    "device",
    "dtype",
    "storage",
    "memory-gb",
    "threads",
    *(sources.flag_name("models", part).removeprefix("--") for part in MODELS),
]
TYPED = st.text(st.characters(exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["", " ", "0", "-1", "7", "0.5", "1e400", "nan", "-inf", "9" * 400, "a" * 5000, "x:99", "x:y", "x:1", ":", "../..",
     "9*9", "512*512", "x.png", "no/x.png", "a.gguf", "fp8", "cpu", "cuda:0", "int3", "5GB", "12,", "1,2", "4"]
)  # fmt: skip


def typed(command, fixed, settings=()):
    """Command lines of a command with values for any of its flags; what goes to the operating system has no NUL."""
    flags = st.tuples(st.sampled_from([*FLAGS[command], *settings]), TYPED)
    return st.lists(flags, max_size=4).map(
        lambda given: [command, *fixed, *(f"--{flag}={value}" for flag, value in given)]
    )


@given(
    typed("generate", ["x", "--model=/nowhere"], SETTINGS)
    | typed("info", ["--plan"], SETTINGS)
    | typed("convert", ["/nowhere", "converted"])
)
@example(["info", "--plan", "--host-memory=inf"])
@example(["generate", "x", "--model=/nowhere", "--lora=x:99"])
def test_no_value_ends_in_a_traceback(argv):
    error, status = io.StringIO(), 0
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = cli.main(argv)
        except SystemExit as ended:
            status = ended.code
    assert (status == 0) is (error.getvalue() == "")
    if status:
        assert status in (1, 2)
        assert error.getvalue().startswith("hidream")
        assert error.getvalue().count("\n") == 1
    assert status or argv[0] == "info"  # there is no model to draw with, and nothing to convert


@pytest.mark.integration
def test_help_imports_nothing_heavy():
    code = (
        "import sys, hidream.cli\n"
        "try: hidream.cli.main(['generate', '--help'])\n"
        "except SystemExit: print({'torch', 'diffusers', 'sqlalchemy', 'fastapi'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--lora" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_keys_are_made_rotated_and_revoked_with_a_pepper(home, capsys, monkeypatch):
    monkeypatch.setenv("HIDREAM_STORE_KEY_PEPPER", "a secret beside the database")
    made = [
        "keys",
        "create",
        "--name",
        "laptop",
        "--scopes",
        "submit",
        "--requests-per-minute",
        "9",
        "--tasks-max",
        "2",
        "--steps-max",
        "30",
    ]
    assert cli.main(made) == 0
    secret = capsys.readouterr().out.split("\n")[0]
    assert cli.main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert "valid" in listed
    assert "submit" in listed
    assert "9 submissions a minute, 2 unfinished tasks at a time, 30 steps of a task" in listed
    assert "laptop" in listed
    assert secret not in listed
    assert "a secret beside" not in listed

    def found(secret, pepper):
        async def look():
            async with Database.open(f"sqlite+aiosqlite:///{home}/home/hidream.db") as database:
                return await keys.find(database, secret, pepper=pepper)

        return asyncio.run(look())

    key = found(secret, "a secret beside the database")
    assert (key.name, key.scopes, key.limits) == ("laptop", {Scope.SUBMIT}, Limits(9, 2, steps_max=30))
    assert found(secret, "") is None
    assert cli.main(["keys", "limit", key.id, "--tasks-max", "0", "--work-per-day", "1000"]) == 0
    assert "any number of unfinished tasks at a time, 1000 pixel steps in 24 hours" in capsys.readouterr().out
    assert found(secret, "a secret beside the database").limits == Limits(9, steps_max=30, work_per_day=1000)
    assert cli.main(["keys", "limit", key.id, "--priority", "2"]) == 0
    assert capsys.readouterr().out == f"changed {key.id}: priority 2\n"
    assert found(secret, "a secret beside the database").priority == 2
    assert cli.main(["keys", "list"]) == 0
    assert "1000 pixel steps in 24 hours, priority 2" in capsys.readouterr().out
    assert cli.main(["keys", "limit", key.id]) == 1
    assert "no limit is given" in capsys.readouterr().err
    assert cli.main(["keys", "rotate", key.id]) == 0
    second = capsys.readouterr().out.split("\n")[0]
    assert found(secret, "a secret beside the database") is None
    assert found(second, "a secret beside the database").id == key.id
    assert cli.main(["keys", "revoke", key.id]) == 0
    assert found(second, "a secret beside the database") is None
    assert cli.main(["keys", "rotate", "0" * 32]) == 1
    assert "there is no key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed",
    [
        "audit",
        "keys list",
        "keys export k --out a.zip",
        "keys erase k --yes",
        "keys limit k --tasks-max 1",
        "keys revoke k",
        "keys rotate k",
        "keys rotate-webhook k",
        "keys rotate-webhook k --retire",
    ],
)
def test_a_wrong_home_is_an_error_and_stays_as_it_is(home, capsys, typed):
    assert cli.main(typed.split()) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"there is no database of this server at sqlite+aiosqlite:///{home}/home/hidream.db" in printed.err
    assert "HIDREAM_HOME" in printed.err
    assert list(home.iterdir()) == []


@pytest.mark.integration
def test_another_pepper_makes_no_key(home, capsys, monkeypatch):
    monkeypatch.setenv("HIDREAM_STORE_KEY_PEPPER", "a secret beside the database")
    assert cli.main(["keys", "create", "--name", "laptop"]) == 0
    id_ = re.search("id is ([0-9a-f]{32})", capsys.readouterr().out)[1]
    for pepper in ("another secret beside it", ""):
        monkeypatch.setenv("HIDREAM_STORE_KEY_PEPPER", pepper)
        for typed in (["keys", "create", "--name", "phone"], ["keys", "rotate", id_], ["api", "--port", "0"]):
            assert cli.main(typed) == (78 if typed[0] == "api" else 1)
            printed = capsys.readouterr()
            assert printed.out == ""
            assert printed.err.startswith("hidream: [store] key_pepper (HIDREAM_STORE_KEY_PEPPER) is not")
            assert printed.err.count("\n") == 1
            assert "beside" not in printed.err
    assert cli.main(["keys", "list"]) == 0
    assert cli.main(["keys", "revoke", id_]) == 0
    assert cli.main(["keys", "create", "--name", "phone"]) == 0


@pytest.mark.parametrize("command", ["api", "serve"])
def test_a_first_key_that_could_be_found_by_trying_is_refused(home, capsys, monkeypatch, command):
    monkeypatch.setenv("HIDREAM_API_KEY", "fifteen letters")
    assert cli.main([command, "--port", "0"]) == 78
    error = capsys.readouterr().err
    assert error.startswith("hidream: HIDREAM_API_KEY has 15 characters; accepted: 16 or more")
    assert error.count("\n") == 1
    assert "letters" not in error


@pytest.mark.parametrize(("command", "status"), [("api", 78), ("serve", 78), ("worker", 78), ("info", 1)])
def test_what_is_started_again_and_again_says_when_that_is_in_vain(home, capsys, monkeypatch, command, status):
    monkeypatch.setenv("HIDREAM_SERVER_PORT", "any")
    assert cli.main([command]) == status
    assert "HIDREAM_SERVER_PORT is 'any'" in capsys.readouterr().err


def test_a_pepper_is_never_shown(capsys, monkeypatch):
    monkeypatch.setenv("HIDREAM_STORE_KEY_PEPPER", "too short")
    assert cli.main(["keys", "list"]) == 1
    error = capsys.readouterr().err
    assert "HIDREAM_STORE_KEY_PEPPER is not shown; accepted: 16 or more" in error
    assert "too short" not in error
    loaded = sources.load({"HIDREAM_HOME": "/nowhere", "HIDREAM_STORE_KEY_PEPPER": "x" * 16})
    assert "x" * 16 not in repr(loaded)
    assert "x" * 16 not in sources.to_environ(loaded).values()


@pytest.mark.integration
def test_what_is_done_to_a_key_can_be_looked_up_and_all_of_it_written_out_and_erased(home, capsys):
    def run(*typed):
        assert cli.main([*typed]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    id_ = run("keys", "create", "--name", "Ada's").split()[-1]
    assert run("keys", "rotate-webhook", id_).startswith("whsec_")
    new = run("keys", "rotate-webhook", id_, "--overlap", "2")
    assert re.search(r"^whsec_\w{64}\nsigns beside the old secret until [\d-]+ [\d:]+ UTC, and alone", new)
    assert cli.main(["keys", "rotate-webhook", id_]) == 1
    assert "is being rotated already; accepted" in capsys.readouterr().err
    assert run("keys", "rotate-webhook", id_, "--retire") == "only the new secret signs from now on\n"
    assert "no rotation of" in run("keys", "rotate-webhook", id_, "--retire")
    assert run("keys", "export", id_, "--out", "all.zip").startswith("all.zip: ")
    assert cli.main(["keys", "export", id_, "--out", "all.zip"]) == 1
    assert "--out is 'all.zip', which is there already; accepted: a new file or folder" in capsys.readouterr().err
    assert cli.main(["keys", "erase", id_]) == 1
    assert f"all data of '{id_}' would be erased" in capsys.readouterr().err
    assert run("keys", "erase", id_, "--yes") == f"revoked and erased {id_}: 0 predictions, 0 uploads\n"
    assert "Ada" not in run("keys", "list")
    told = [json.loads(line) for line in run("audit", "--json", "--since", "1h").splitlines()]
    acts = ["create", "rotate-webhook", "rotate-webhook", "retire-webhook", "export", "erase", "erased"]
    assert sorted(each["act"] for each in told) == sorted(f"keys {act}" for act in acts)
    assert {each["subject"] for each in told} == {id_}
    assert all(re.fullmatch(r"[^@ ]+@\S+", each["actor"]) for each in told)
    assert len(run("audit").splitlines()) == len(told)
    for act in ("rotate-webhook", "export"):
        flags = ["--out", "x"] if act == "export" else []
        assert cli.main(["keys", act, "nobody", *flags]) == 1
        assert "there is no key 'nobody'" in capsys.readouterr().err
