"""`hidream doctor` finds what is wrong, and says how to mend it; `--reference` compares nano with diffusers."""

import contextlib
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hidream
from hidream import cli
from hidream.commands import doctor, reference
from hidream.settings.sources import load
from s3_server import KEY_ID, SECRET, S3Server

pytestmark = pytest.mark.integration  # it looks whether a port is free, and asks databases and buckets
NANO = Path(hidream.__file__).parent / "nano"
SUBJECTS = {"versions", "device", "threads", "dev", "full", "fast", "home", "database", "files", "port"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("HIDREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HIDREAM_SERVER_PORT", "0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def diagnosed(capsys):
    """Run the doctor; give its exit status and what is not ok, as {subject: [finding]}."""

    def run(*flags):
        status = cli.main(["doctor", "--json", *flags])
        printed = capsys.readouterr()
        said = json.loads(printed.out)
        assert said["ok"] == (status == 0)
        found = {}
        for finding in said["findings"]:
            assert finding.keys() == {"subject", "state", "text", "cure"}
            if finding["state"] != "ok":
                found.setdefault(finding["subject"], []).append(finding)
        return status, found

    return run


def wrong(found, subject):
    (finding,) = found[subject]
    assert finding["state"] == "wrong"
    return finding


def test_a_machine_without_faults(folder, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    assert {finding["subject"] for finding in said["findings"]} == SUBJECTS
    text = {finding["subject"]: finding["text"] for finding in said["findings"]}
    assert f"hidream {hidream.__version__}" in text["versions"]
    assert "torch" in text["versions"]
    assert "does not exist yet; `hidream serve` creates it" in text["database"]
    assert [path.name for path in (folder / "home").iterdir()] == [load({}).hash_cache.name], "nothing else is made"
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\nnothing is wrong\n")


def test_a_database_that_exists(diagnosed, capsys):
    assert cli.main(["keys", "create"]) == 0
    capsys.readouterr()
    assert diagnosed() == (0, {})
    assert cli.main(["doctor"]) == 0
    assert "home/hidream.db can be opened; it has 1 keys" in capsys.readouterr().out


def test_a_file_that_is_no_database(folder, monkeypatch, diagnosed):
    (folder / "x.db").write_bytes(b"no database, but long enough to be taken for one" * 100)
    monkeypatch.setenv("HIDREAM_STORE_DATABASE_URL", f"sqlite+aiosqlite:///{folder / 'x.db'}")
    status, found = diagnosed()
    assert status == 1
    assert "x.db" in wrong(found, "database")["text"]


def test_a_database_that_does_not_answer_and_whose_password_is_not_shown(monkeypatch, diagnosed):
    monkeypatch.setenv("HIDREAM_STORE_DATABASE_URL", "postgresql+asyncpg://hidream:secret@127.0.0.1:9/hidream")
    status, found = diagnosed()
    assert status == 1
    finding = wrong(found, "database")
    assert "127.0.0.1" in finding["text"]
    assert "secret" not in json.dumps(found)


def test_a_bucket_that_does_not_exist(folder, monkeypatch, diagnosed):
    with S3Server(folder / "s3") as s3:
        access = s3.access()
        for name, value in {"URL": "s3://nobodys/here", "ENDPOINT": access.endpoint, "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"HIDREAM_OUTPUTS_{name}", value)
        monkeypatch.setenv("HIDREAM_OUTPUTS_ACCESS_KEY_ID", KEY_ID)
        monkeypatch.setenv("HIDREAM_OUTPUTS_SECRET_ACCESS_KEY", SECRET)
        status, found = diagnosed()
        assert status == 1
        assert "nobodys" in wrong(found, "files")["text"]
        assert SECRET not in json.dumps(found)
        monkeypatch.setenv("HIDREAM_OUTPUTS_URL", s3.url("here"))
        assert diagnosed() == (0, {})


def test_a_port_that_is_taken(monkeypatch, diagnosed):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("HIDREAM_SERVER_PORT", str(port))
        status, found = diagnosed()
    assert status == 0, "a hidream that runs there is no fault"
    (finding,) = found["port"]
    assert finding["state"] == "warning"
    assert finding["text"] == f"127.0.0.1:{port} cannot be used: Address already in use"
    assert finding["cure"] == "another --port; or a hidream runs there already"


@pytest.fixture
def without(folder):
    """Give nano's folder without some part."""

    def make(part):
        for each in (NANO / "dev").iterdir():
            if each.name != part:
                (folder / "model").mkdir(exist_ok=True)
                (folder / "model" / each.name).symlink_to(each.resolve())
        return folder / "model"

    return make


@pytest.mark.parametrize("part", ["text_encoder_4", "transformer", "vae"])
def test_a_part_that_is_missing(part, without, diagnosed):
    status, found = diagnosed("--model", str(without(part)))
    assert status == 1
    assert part.removesuffix("_4") in wrong(found, "model")["text"]


def test_a_model_that_does_not_exist(diagnosed):
    status, found = diagnosed("--model", "nowhere/model")
    assert status == 1
    assert "nowhere/model" in wrong(found, "model")["text"]


@contextlib.contextmanager
def somebody():
    """Be somebody to whom permissions apply, which they do not to root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_cannot_be_read(monkeypatch, diagnosed):
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are open for their owner only
        folder = Path(made)
        folder.chmod(0o755)
        monkeypatch.setenv("HIDREAM_HOME", str(folder / "home"))
        monkeypatch.setenv("HIDREAM_OUTPUTS_URL", str(folder / "files"))
        shutil.copytree(NANO / "dev" / "vae", folder / "model" / "vae")
        (folder / "loras").mkdir()
        for closed in ("model", "loras", "files"):
            (folder / closed).mkdir(exist_ok=True)
            (folder / closed).chmod(0)
        with somebody():
            status, found = diagnosed("--model", str(folder / "model"), "--lora-folder", str(folder / "loras"))
    assert status == 1
    for subject in ("model", "loras", "files"):
        assert "Permission denied" in wrong(found, subject)["text"]


def test_a_disk_that_is_nearly_full(monkeypatch, diagnosed):
    monkeypatch.setenv("HIDREAM_STORE_FREE_MIN_MB", str(10**9))
    status, found = diagnosed()
    assert status == 1
    assert wrong(found, "home")["cure"] == "free some space, or set HIDREAM_HOME to another disk"


def test_threads_that_slow_each_other_down(monkeypatch, diagnosed):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    status, found = diagnosed("--threads", "512")
    assert status == 0
    many, waiting = found["threads"]
    assert "512 threads share" in many["text"]
    assert "OMP_WAIT_POLICY is active" in waiting["text"]
    assert (many["state"], waiting["state"]) == ("warning", "warning")


def test_files_that_others_can_read(folder, capsys, diagnosed):
    assert cli.main(["keys", "create"]) == 0
    capsys.readouterr()
    (folder / "home").chmod(0o755)
    status, found = diagnosed()
    assert status == 0
    (finding,) = found["home"]
    assert finding == {
        "subject": "home",
        "state": "warning",
        "text": f"other users can read {folder / 'home'}",
        "cure": f"chmod -R go= {folder / 'home'}",
    }


def test_what_is_wrong_is_said_with_its_cure(capsys, monkeypatch):
    monkeypatch.setenv("HIDREAM_STORE_FREE_MIN_MB", str(10**9))
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("wrong")]
    assert lines[at].split()[1] == "home"
    assert lines[at + 1].strip() == "free some space, or set HIDREAM_HOME to another disk"
    assert lines[-1] == f"1 of {len([line for line in lines if line[:1] != ' ']) - 1} findings are wrong"


def test_a_check_is_named_as_its_findings_are():
    named = {check.__name__.strip("_") for check in doctor.CHECKS}
    assert named == SUBJECTS - {"dev", "full", "fast"} | {"model", "loras"}


# --- doctor --reference ---


@pytest.mark.parametrize("variant", ["dev", "full"])
def test_nano_is_as_diffusers_has_it(folder, capsys, variant):
    typed = [
        "doctor",
        "--reference",
        "--variant",
        variant,
        "--steps",
        "2",
        "--seed",
        "3",
        "--json",
        "--out",
        "both.png",
    ]
    assert cli.main(typed) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["same"] is True
    assert said["psnr_db"] >= reference.SAME_DB
    assert said["version"].startswith(f"hidream-i1-{variant}/")
    assert (said["prompt"], said["seed"], said["side_by_side"]) == (reference.PROMPT, 3, "both.png")
    with Image.open(folder / "both.png") as both:
        width, height = both.size
        ours, theirs = np.split(np.asarray(both).astype(int), 2, axis=1)
    assert f"{width // 2}*{height}" == said["size"]
    assert np.abs(ours - theirs).max() == said["largest_difference"] <= 2
    assert round(float(np.abs(ours - theirs).mean()), 4) == said["mean_difference"]


def test_images_that_differ_are_a_failure(capsys, monkeypatch):
    monkeypatch.setattr(reference, "SAME_DB", 1000.0)
    assert cli.main(["doctor", "--reference", "--steps", "1"]) == 1
    assert "the images differ: please report this with --json" in capsys.readouterr().out


def test_a_folder_in_another_layout_cannot_be_compared(capsys, without):
    assert cli.main(["doctor", "--reference", "--model", str(without("model_index.json")), "--steps", "1"]) == 1
    said = capsys.readouterr().err
    assert "model_index.json; accepted: a model folder in the diffusers layout" in said
    assert said.count("\n") == 1


def test_the_difference_of_two_images_in_decibels():
    nothing, one = np.zeros((4, 4, 3), np.int16), np.ones((4, 4, 3), np.int16)
    assert reference._psnr(nothing) == 99.0
    assert reference._psnr(one) == pytest.approx(48.1308, abs=1e-4)
    assert reference._psnr(255 * one) == pytest.approx(0)
