"""`hidream bench`: a table for people, and one line of JSON that they can send."""

import json
import os

import pytest

import hidream
from hidream import cli
from hidream.commands import bench

pytestmark = pytest.mark.integration  # what says the name of the system runs `uname`
RUN = ["bench", "--sizes", "256x256,512x256", "--steps", "1", "--rounds", "2"]
SCHEMA = {
    "hidream": str,
    "torch": str,
    "threads": int,
    "cpu": str,
    "cards": list,
    "system": str,
    "version": str,
    "device": str,
    "load_s": float,
    "rounds": int,
    "steps": int,
    "images": list,
}
ROW = {"size": str, "median_s": float, "fastest_s": float, "text_s": float, "denoise_s": float, "decode_s": float}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("HIDREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path))


def check(said):
    assert {name: type(value) for name, value in said.items()} == SCHEMA
    assert said["hidream"] == hidream.__version__
    assert said["version"].startswith("hidream-i1-dev/")
    assert (said["device"], said["rounds"], said["steps"]) == ("cpu", 2, 1)
    assert all(isinstance(card, str) for card in said["cards"])
    assert [row["size"] for row in said["images"]] == ["256*256", "512*256"]
    for row in said["images"]:
        assert {name: type(value) for name, value in row.items()} == ROW
        assert 0 < row["fastest_s"] <= row["median_s"]
        assert 0 < row["denoise_s"] < row["median_s"]


def test_json_is_one_line_with_all_that_a_reader_must_know(capsys):
    assert cli.main([*RUN, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    check(json.loads(line))


def test_the_table_is_followed_by_the_same_line(capsys):
    assert cli.main(RUN) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert [word for name in bench.HEAD for word in name.split()] == head.split()
    said = json.loads(last)
    check(said)
    shown = [line.split() for line in rows if line.strip("-─ ")]
    assert [cells[0] for cells in shown] == ["256*256", "512*256"]
    for cells, row in zip(shown, said["images"], strict=True):
        assert cells[1:] == [f"{row[name]:.3f}" for name in ROW if name != "size"]


def test_the_default_number_of_steps_is_that_of_the_variant(capsys):
    assert cli.main(["bench", "--sizes", "256x256", "--rounds", "1", "--variant", "fast", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["steps"], said["rounds"]) == (16, 1)
    assert said["version"].startswith("hidream-i1-fast/")
