"""`hidream generate --server` and `hidream batch` against a running server."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from PIL import Image

from hidream import cli

SMALL = ["--size", "256*256", "--steps", "1"]


@pytest.fixture(autouse=True)
def folder(service, tmp_path, monkeypatch):
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HIDREAM_API_KEY", service.key)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tasks(service):
    """The number of tasks that the server has."""
    answer = httpx.post(
        f"{service.url}/api/v3/predictions",
        json={"page": 1, "page_size": 1},
        headers={"Authorization": f"Bearer {service.key}"},
    )
    return answer.json()["data"]["total"]


def test_a_server_generates_the_same_file_and_takes_no_request_twice(service, folder, capsys):
    alone = ["generate", "a fox", "--seed", "7", *SMALL]
    assert cli.main([*alone, "--server", service.url, "--out", "there.png"]) == 0
    assert cli.main([*alone, "--out", "here.png"]) == 0
    assert (folder / "there.png").read_bytes() == (folder / "here.png").read_bytes()
    (folder / "p.csv").write_text("prompt,seed\na fox,7\na fox,8\nan owl,\n")
    typed = ["generate", "--prompts", "p.csv", *SMALL, "--server", service.url, "--out", "images"]
    assert cli.main(typed) == 0
    assert (folder / "images" / "0001-a-fox.png").read_bytes() == (folder / "here.png").read_bytes()
    manifest = folder / "images" / "manifest.jsonl"
    head, *entries = manifest.read_bytes().splitlines(keepends=True)
    before = tasks(service)
    manifest.write_bytes(head)  # as if the run had been killed before the first image came
    for file in folder.glob("images/*.png"):
        file.unlink()
    assert cli.main(typed) == 0
    assert tasks(service) == before
    assert [json.loads(e)["sha256"] for e in manifest.read_bytes().splitlines()[1:]] == [
        json.loads(e)["sha256"] for e in entries
    ]


def test_a_server_that_is_not_there_is_one_line(folder, capsys):
    (folder / "p.txt").write_text("a fox\nan owl\n")
    typed = ["generate", "--prompts", "p.txt", "--server", "http://127.0.0.1:1"]
    assert cli.main(typed) == 1
    error = capsys.readouterr().err
    assert "127.0.0.1:1" in error
    assert error.count("\n") == 1


def test_a_batch_whose_server_is_gone_is_one_line(service, folder, capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    (folder / "p.txt").write_text("a fox\nan owl\n")
    assert cli.main(["batch", "submit", "p.txt", "--server", service.url]) == 0
    capsys.readouterr()
    assert cli.main(["batch", "fetch", "p.batch.jsonl", "--server", "http://127.0.0.1:1"]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "http://127.0.0.1:1 cannot be reached" in printed.err


def test_a_batch_that_was_killed_at_its_beginning_is_begun_again(service, folder, capsys):
    (folder / "p.txt").write_text("a fox\n")
    (folder / "p.batch.jsonl").write_text('{"hidream_ba')
    assert cli.main(["batch", "status", "p.batch.jsonl"]) == 1
    assert "is not a batch yet: its submission was interrupted" in capsys.readouterr().err
    assert cli.main(["batch", "submit", "p.txt", "--server", service.url]) == 0
    (folder / "notes.txt").write_text("mine")
    assert cli.main(["batch", "submit", "p.txt", "--server", service.url, "--batch", "notes.txt"]) == 1
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_batch_is_submitted_once_and_fetched_later(service, folder, capsys):
    requests = [{"prompt": "a fox", "seed": 7}, {"prompt": "an owl"}]
    (folder / "p.jsonl").write_text(
        "".join(json.dumps({**each, "size": "256*256", "steps": 1}) + "\n" for each in requests)
    )
    submit = ["batch", "submit", "p.jsonl", "--server", service.url, "--json"]
    before = tasks(service)
    assert cli.main(submit) == 0
    assert json.loads(capsys.readouterr().out) == {"batch": "p.batch.jsonl", "submitted": 2, "tasks": 2}
    assert cli.main(submit) == 0
    assert json.loads(capsys.readouterr().out)["submitted"] == 0
    head = (folder / "p.batch.jsonl").read_bytes().splitlines(keepends=True)[0]
    (folder / "p.batch.jsonl").write_bytes(head + b'{"torn')  # as if the first run had been killed
    assert cli.main(submit) == 0
    assert json.loads(capsys.readouterr().out)["submitted"] == 2
    assert tasks(service) == before + 2
    assert cli.main(["batch", "fetch", "p.batch.jsonl", "--wait", "--json"]) == 0
    fetched = json.loads(capsys.readouterr().out)
    assert (fetched["out"], fetched["fetched"]) == ("p", 2)
    with Image.open(folder / "p" / "0001-a-fox.png") as image:
        assert image.text["seed"] == "7"
    assert cli.main(["batch", "status", "p.batch.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["states"] == {"completed": 2}
    assert cli.main(["batch", "fetch", "p.batch.jsonl"]) == 0
    assert capsys.readouterr().out == "p: 2 there\n"
