"""The manifest: whatever moment a run is killed at, the folder is completed, and nothing is generated twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hidream.commands.journal import sole_writer
from hidream.commands.manifest import Manifest, entry_of
from hidream.errors import InvalidInput

ABOUT = {"seed": 7, "version": "v", "parameters": {"prompt": "a fox"}}


def test_what_is_added_is_found_by_the_next_run(tmp_path):
    first = Manifest(tmp_path / "out")
    first.add("k-0", "1.png", b"image", ABOUT)
    second = Manifest(tmp_path / "out")
    assert second.id == first.id
    assert second.find("k-0") == first.entries["k-0"]
    assert second.find("other") is None
    assert entry_of(tmp_path / "out" / "1.png")["parameters"] == {"prompt": "a fox"}
    (tmp_path / "out" / "1.png").write_bytes(b"changed")
    assert second.find("k-0") is None
    assert entry_of(tmp_path / "out" / "1.png") is None


def test_a_kill_between_any_two_steps_loses_nothing_that_has_its_line(tmp_path, monkeypatch):
    """Each call that changes the disk ends the run, in its turn, before or after it has worked."""

    class Killed(BaseException):
        pass

    def killed_at(turn, before):
        calls = iter(range(100))

        def wrap(function):
            def wrapped(*args, **kwargs):
                now = next(calls) == turn
                if now and before:
                    raise Killed
                result = function(*args, **kwargs)
                if now:
                    raise Killed
                return result

            return wrapped

        return wrap

    outcomes = set()
    for turn in range(3):  # fsync of the file, fsync of the line, rename
        for before in (True, False):
            folder = tmp_path / f"{turn}-{before}"
            manifest = Manifest(folder)
            with monkeypatch.context() as patched, pytest.raises(Killed):
                wrap = killed_at(turn, before)
                patched.setattr(os, "fsync", wrap(os.fsync))
                patched.setattr(Path, "replace", wrap(Path.replace))
                manifest.add("k-0", "1.png", b"image", ABOUT)
            later = Manifest(folder)
            lines = (folder / "manifest.jsonl").read_text().splitlines()
            there = later.find("k-0") is not None
            assert there is (len(lines) == 2)
            if not there:
                later.add("k-0", "1.png", b"image", ABOUT)
            assert (folder / "1.png").read_bytes() == b"image"
            assert not list(folder.glob("*.part"))
            assert Manifest(folder).find("k-0")
            outcomes.add(there)
    assert outcomes == {True, False}


def test_a_torn_line_is_cut_off(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add("k-0", "1.png", b"image", ABOUT)
    whole = manifest.path.read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole)):
        manifest.path.write_bytes(whole[:length])
        (tmp_path / "1.png").unlink()  # it gets its name after its line
        again = Manifest(tmp_path)
        assert again.find("k-0") is None
        again.add("k-0", "1.png", b"image", ABOUT)
        assert [json.loads(line) for line in again.path.read_bytes().splitlines()] == [
            json.loads(line) for line in whole.splitlines()
        ]


def test_names_are_not_shared(tmp_path):
    manifest = Manifest(tmp_path)
    (tmp_path / "1.png").write_bytes(b"the user's")
    assert manifest.add("k-0", "1.png", b"image", ABOUT)["file"] == "1-2.png"
    assert manifest.add("k-1", "1.png", b"image", ABOUT)["file"] == "1-3.png"
    assert manifest.add("k-0", "1.png", b"again", ABOUT)["file"] == "1-2.png"
    assert (tmp_path / "1.png").read_bytes() == b"the user's"


def test_a_torn_head_is_written_again(tmp_path):
    whole = Manifest(tmp_path).path.read_bytes()
    for length in range(len(whole)):
        (tmp_path / "manifest.jsonl").write_bytes(whole[:length])
        Manifest(tmp_path).add("k-0", "1.png", b"image", ABOUT)
        assert Manifest(tmp_path).find("k-0"), length
        (tmp_path / "1.png").unlink()


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../1.png"},
        {"file": "/tmp/1.png"},
        {"file": 7},
        {"file": "."},
        {"sha256": None},
        {"key": ["k"]},
        {"parameters": 7},
        {"hidream_manifest": 1, "id": "x"},
    ],
)
def test_an_entry_that_leads_elsewhere_is_refused(tmp_path, change):
    manifest = Manifest(tmp_path)
    manifest.add("k-0", "1.png", b"image", ABOUT)
    head, entry = manifest.path.read_text().splitlines()
    manifest.path.write_text(f"{head}\n{json.dumps(json.loads(entry) | change)}\n")
    with pytest.raises(InvalidInput, match="line 2 is not one of a manifest"):
        Manifest(tmp_path)
    assert entry_of(tmp_path / "1.png") is None


@pytest.mark.parametrize("content", ["hello", '{"a": 1}\n{"b"', "[" * 100_000 + "\n"])
def test_a_file_of_another_program_is_not_cut(tmp_path, content):
    (tmp_path / "manifest.jsonl").write_text(content)
    with pytest.raises(InvalidInput, match="line 1 is not one of a manifest"):
        Manifest(tmp_path)
    assert (tmp_path / "manifest.jsonl").read_text() == content


@pytest.mark.integration
def test_one_process_at_a_time_fills_a_folder(tmp_path):
    with sole_writer(tmp_path / "out"):
        script = "from pathlib import Path; from hidream.commands.journal import sole_writer\n"
        script += f"with sole_writer(Path({str(tmp_path / 'out')!r})): pass"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert "which another process is filling; accepted: another folder, or later" in other.stderr
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="which is a file; accepted: a folder"), sole_writer(tmp_path / "file"):
        pass


@pytest.mark.parametrize("content", ["{}\n", "hello\n", '{"hidream_manifest": 2, "id": "x"}\n', "[1]\n"])
def test_another_file_of_that_name_is_refused_and_stays(tmp_path, content):
    (tmp_path / "manifest.jsonl").write_text(content)
    with pytest.raises(InvalidInput, match="line 1 is not one of a manifest of hidream; accepted: another folder"):
        Manifest(tmp_path)
    assert (tmp_path / "manifest.jsonl").read_text() == content
