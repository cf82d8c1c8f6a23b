"""`hidream models list | show | verify | rm`."""

from __future__ import annotations

import hashlib

import pytest
from hub_server import DEV, LLAMA

from hub_cache import COMMIT, put

pytestmark = pytest.mark.integration

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}
GGUF = "city96/HiDream-I1-Dev-gguf"


def row(hidream, name, **environ):
    (found,) = (each for each in hidream.json("models", "list", **environ) if each["name"] == name)
    return found


def test_list_without_a_cache(hub, hidream):
    out, _ = hidream.run("models", "list")
    assert f"the Hub's cache is {hidream.cache}\n" in out
    for name in ("dev", "full", "fast", "llama"):
        assert row(hidream, name)["state"] == "absent"
    assert not hidream.cache.exists()
    assert not hub.requests


def test_list_shows_the_cache_and_the_settings(hidream, tmp_path):
    snapshot = put(hidream.cache, LLAMA, FILES)
    put(hidream.cache, GGUF, {"dev-Q4.gguf": b"0"})
    put(hidream.cache, "google-bert/bert-base", FILES)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    environ = {"HIDREAM_MODELS_LLAMA": LLAMA, "HIDREAM_MODELS_FULL": str(folder), "HIDREAM_MODELS_FAST": "/nowhere"}
    found = row(hidream, "llama", **environ)
    assert (found["state"], found["size_bytes"], found["commit"]) == ("complete", 9, COMMIT)
    assert (found["folder"], found["used_by"]) == (str(snapshot), ["[models] llama"])
    rows = hidream.json("models", "list", **environ)
    assert [each["name"] for each in rows] == ["dev", "full", "fast", "llama", GGUF, "full", "fast"]
    assert [each["state"] for each in rows[-2:]] == ["folder", "absent"]
    (snapshot / "model.safetensors").unlink()
    found = row(hidream, "llama")
    assert found["state"] == "incomplete"
    assert "lacks *.safetensors" in found["note"]
    assert "needs Llama: `hidream models pull llama`" in hidream.json("models", "list", **environ)[-2]["note"]


def test_show_what_is_in_the_cache_asks_nobody(hub, hidream):
    put(hidream.cache, LLAMA, FILES)
    data = hidream.json("models", "show", "llama")
    digests = {each["path"]: each["digest"] for each in data["files"]}
    assert digests["model.safetensors"] == hashlib.sha256(b"weights").hexdigest()
    assert (data["licence"], data["gated"]) == ("the Llama 3.1 Community License", "yes")
    out, _ = hidream.run("models", "show", "llama")
    assert f"model     {LLAMA}\n" in out
    assert not hub.requests


def test_show_asks_the_hub_for_what_is_not_here(hub, hidream):
    hub.add(DEV, {"model_index.json": b"{}", "transformer/config.json": b"{}", "sample.png": b"no"})
    data = hidream.json("models", "show", "dev")
    assert [each["path"] for each in data["files"]] == ["model_index.json", "transformer/config.json"]
    assert data["command"] == f'hidream generate "a fox in the snow" --model {DEV}'
    assert data["state"] == "absent"


def test_verify_finds_a_changed_file_and_pull_brings_it_again(hub, hidream):
    hub.add(LLAMA, FILES)
    hidream.run("models", "pull", "llama", "--yes")
    out, _ = hidream.run("models", "verify")
    assert out.count("ok ") == len(FILES)
    blob = hidream.cache / f"models--{LLAMA.replace('/', '--')}" / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.write_bytes(b"wEights")
    out, err = hidream.run("models", "verify", "llama", status=1)
    assert "WRONG                 7  meta-llama/Meta-Llama-3.1-8B-Instruct  model.safetensors\n" in out
    assert "`--remove` deletes the wrong files" in err
    assert blob.exists()
    found = hidream.json("models", "verify", "llama", "--remove", status=1)
    states = {each["path"]: each["state"] for each in found}
    assert states == dict.fromkeys(FILES, "ok") | {"model.safetensors": "wrong"}
    hidream.run("models", "pull", "llama", "--yes")
    hidream.run("models", "verify", "llama")
    assert blob.read_bytes() == b"weights"


def test_verify_of_nothing_is_an_error(hidream):
    _, err = hidream.run("models", "verify", status=1)
    assert "has no model; accepted: after `models pull`" in err
    _, err = hidream.run("models", "verify", "dev", status=1)
    assert f"the Hub's cache has no {DEV}" in err


def test_rm_asks_and_removes_one_model(hidream):
    put(hidream.cache, LLAMA, FILES)
    put(hidream.cache, GGUF, {"dev-Q4.gguf": b"0"})
    out, err = hidream.run("models", "rm", "llama", status=1, HIDREAM_MODELS_LLAMA=LLAMA)
    assert "nobody can be asked whether to delete 9 B" in err
    assert ": 9 B, which `[models] llama` names" in out
    hidream.run("models", "rm", "llama", "--yes")
    assert row(hidream, "llama")["state"] == "absent"
    assert row(hidream, GGUF)["state"] == "complete"
    for name in ("llama", "dev"):
        _, err = hidream.run("models", "rm", name, "--yes", status=1)
        assert "the Hub's cache has no " in err
    _, err = hidream.run("models", "rm", f"{GGUF}@v1", "--yes", status=1)
    assert "a repository is removed as a whole" in err
