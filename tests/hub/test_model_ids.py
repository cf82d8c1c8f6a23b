"""What may be an id of the Hub, and what is a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from hidream.errors import InvalidInput
from hidream.hub.names import ModelId, as_id, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HiDream-ai/HiDream-I1-Dev", ModelId("HiDream-ai/HiDream-I1-Dev")),
        ("owner/name@v1.0", ModelId("owner/name", "v1.0")),
        ("owner/name@refs/pr/1", ModelId("owner/name", "refs/pr/1")),
        ("models/dev", ModelId("models/dev")),
        ("/models/dev", None),
        ("./models/dev", None),
        ("../dev", None),
        ("~/dev", None),
        ("models/gguf/dev", None),
        ("dev", None),
        ("models/dev.gguf", None),
        ("models/dev.safetensors", None),
        ("owner /name", None),
        ("owner/name@../x", None),
        ("owner/name@", None),
        pytest.param(f"owner/name@{'x' * 5000}", None, id="long"),
        ("owner/name@\0", None),
        ("", None),
    ],
)
def test_ids_are_told_from_paths(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    assert as_id(text) == expected
    if not text.startswith("./"):  # a Path drops it
        assert as_id(Path(text)) == expected


def test_what_is_here_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "HiDream-ai" / "HiDream-I1-Dev").mkdir(parents=True)
    assert as_id("HiDream-ai/HiDream-I1-Dev") is None


@pytest.mark.parametrize("revision", ["", "../x", "a/../b", "/x", "x y", "a//b", "..", "x\n", "."])
def test_a_revision_cannot_lead_elsewhere(revision):
    for text in (f"owner/name@{revision}", f"dev@{revision}"):
        with pytest.raises(InvalidInput):
            parse(text)


def test_short_names():
    assert parse("llama") == ModelId("meta-llama/Meta-Llama-3.1-8B-Instruct")
    assert parse("full@v2") == ModelId("HiDream-ai/HiDream-I1-Full", "v2")
    for text in ("", "nano", "owner/", "/name", "a/b/c"):
        with pytest.raises(InvalidInput, match="accepted: dev, full, fast, llama, or an id"):
            parse(text)


def test_an_id_says_its_revision():
    assert str(ModelId("a/b")) == "a/b"
    assert parse(str(ModelId("a/b", "v1"))) == ModelId("a/b", "v1")
