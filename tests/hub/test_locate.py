"""From the id of a model to its folder in the cache, and what is said of one that is not there, or not whole."""

from __future__ import annotations

import json
import logging
import re

import huggingface_hub.constants
import pytest

from hidream.errors import CheckpointError
from hidream.hub.locate import locate, parts
from hidream.parts import ENCODERS, LLAMA
from hub_cache import COMMIT, put

DEV, FULL = "HiDream-ai/HiDream-I1-Dev", "HiDream-ai/HiDream-I1-Full"
META, UNSLOTH = "meta-llama/Meta-Llama-3.1-8B-Instruct", "unsloth/Meta-Llama-3.1-8B-Instruct"
LLAMA_FILES = {"config.json": b"{}", "model.safetensors": b"0", "tokenizer.json": b"{}"}
SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
INDEX = json.dumps({"weight_map": {f"key{i}": name for i, name in enumerate(SHARDS)}}).encode()
OTHER = "f" * 40


def official():
    files = {"model_index.json": b"{}", "transformer/config.json": b"{}"}
    files |= {f"transformer/{name}": b"0" for name in SHARDS}
    files |= {"transformer/diffusion_pytorch_model.safetensors.index.json": INDEX}
    for folder in ("vae", *(each.name for each in ENCODERS if each is not LLAMA)):
        files |= {f"{folder}/config.json": b"{}", f"{folder}/model.safetensors": b"0"}
    return files | {f"{each.tokenizer}/tokenizer.json": b"{}" for each in ENCODERS if each is not LLAMA}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_path_is_itself(tmp_path):
    assert locate(str(tmp_path)) == tmp_path
    assert locate("/nowhere/model.gguf").as_posix() == "/nowhere/model.gguf"


def test_a_snapshot_is_found(cache):
    snapshot = put(cache, DEV, official())
    assert locate(DEV) == locate(DEV, revision="main") == locate(f"{DEV}@{COMMIT}") == snapshot


def test_a_revision_is_that_revision(cache):
    put(cache, DEV, official())
    new = put(cache, DEV, official() | {"model_index.json": b"[]"}, commit=OTHER, ref="v2")
    assert locate(DEV, revision="v2") == locate(DEV, revision=OTHER) == new
    with pytest.raises(CheckpointError, match=re.escape(f"which has other revisions of it ({DEV}@{COMMIT}, ")):
        locate(DEV, revision="v3")


def test_what_is_not_in_the_cache_says_how_it_gets_there(cache):
    where = re.escape(f"neither a file or folder here nor in the Hub's cache ({cache})")
    with pytest.raises(CheckpointError, match=rf"{DEV} is {where}. `hidream models pull dev` downloads it \(47.2 GB"):
        locate(DEV)
    with pytest.raises(CheckpointError, match=r"`hidream models pull dev@v1` downloads"):
        locate(DEV, revision="v1")
    with pytest.raises(CheckpointError, match=r"pull models/dev` downloads it, after it has shown how large it is"):
        locate("models/dev")


MISSING = [
    ([f"transformer/{SHARDS[1]}"], f"lacks transformer/{SHARDS[1]}. "),
    (["transformer/config.json", "vae/config.json"], r"lacks transformer/config.json, vae/config.json\. "),
    ([f"transformer/{name}" for name in SHARDS] + ["vae/model.safetensors"], r"-00003.safetensors and 1 more\. "),
    (["tokenizer_2/tokenizer.json"], r"lacks tokenizer_2/"),
    (["transformer/diffusion_pytorch_model.safetensors.index.json"], None),  # the shards that there are
]
NO_FOLDER = ["text_encoder/model.safetensors", "text_encoder/config.json"], r"lacks text_encoder/\. "


@pytest.mark.parametrize(
    ("gone", "said", "dangling"),
    [*((*each, dangling) for each in MISSING for dangling in (False, True)), (*NO_FOLDER, False)],
)
def test_what_is_missing_is_named(cache, gone, said, dangling):
    """Links that are not there, or whose file is not (`dangling`), of which a missing folder has none."""
    snapshot = put(cache, DEV, official() | {path: path.encode() for path in gone if not path.endswith(".index.json")})
    for path in gone:
        (snapshot / path).resolve().unlink() if dangling else (snapshot / path).unlink()
    if gone is NO_FOLDER[0]:
        (snapshot / "text_encoder").rmdir()
    if said is None and not dangling:
        assert locate(DEV) == snapshot
        return
    with pytest.raises(CheckpointError, match=said or "index.json") as caught:
        locate(DEV)
    assert "`hidream models pull dev` downloads it" in str(caught.value)


def test_an_index_that_is_none_is_missing(cache):
    put(cache, DEV, official() | {"transformer/diffusion_pytorch_model.safetensors.index.json": b"[]"})
    with pytest.raises(CheckpointError, match=r"lacks transformer/diffusion_pytorch_model.safetensors.index.json"):
        locate(DEV)


def test_other_repositories_need_what_they_have(cache):
    mine = put(cache, "me/hidream-gguf", {"dev-Q4.gguf": b"0"})
    assert locate("me/hidream-gguf") == mine
    nf4 = put(cache, "me/nf4", {"transformer/config.json": b"{}", "transformer/x.safetensors": b"0"})
    assert locate("me/nf4") == nf4
    (nf4 / "transformer/x.safetensors").resolve().unlink()
    with pytest.raises(CheckpointError, match=r"me/nf4 is not complete .* lacks transformer/x.safetensors"):
        locate("me/nf4")
    (mine / "dev-Q4.gguf").resolve().unlink()
    with pytest.raises(CheckpointError, match=r"lacks dev-Q4.gguf"):
        locate("me/hidream-gguf")


# --- the parts of a checkpoint -------------------------------------------------------------------------------------


def test_every_part_may_be_an_id(cache, tmp_path):
    dev, llama = put(cache, DEV, official()), put(cache, META, LLAMA_FILES)
    paths = {name: tmp_path.__class__(DEV) for name in ("folder", "t5", "clip_l", "clip_g", "vae", "tokenizers")}
    named = paths | {"llama": tmp_path.__class__(META)}
    assert parts(named) == dict.fromkeys(paths, dev) | {"llama": llama}


def test_a_checkpoint_needs_only_the_parts_that_are_not_named_beside_it(cache, tmp_path):
    path = tmp_path.__class__
    alone = {name: content for name, content in official().items() if name.startswith("transformer/")}
    full = put(cache, FULL, alone | {"model_index.json": b"{}"})
    dev, llama = put(cache, DEV, official()), put(cache, META, LLAMA_FILES)
    beside = {name: path(DEV) for name in ("t5", "clip_l", "clip_g", "vae", "tokenizers")}
    found = parts({"folder": path(FULL)} | beside)
    assert found == {"folder": full, "llama": llama} | dict.fromkeys(beside, dev)
    with pytest.raises(CheckpointError, match=r"HiDream-I1-Full is not complete .* lacks vae/\. "):
        parts({"folder": path(FULL)} | {name: value for name, value in beside.items() if name != "vae"})


def test_a_part_needs_only_its_own_files(cache, tmp_path):
    files = {name: content for name, content in official().items() if name.startswith("text_encoder_3/")}
    snapshot = put(cache, DEV, files)
    assert parts({"t5": tmp_path.__class__(DEV)}) == {"t5": snapshot}
    with pytest.raises(CheckpointError, match=r"lacks vae/"):
        parts({"vae": tmp_path.__class__(DEV)})


@pytest.mark.parametrize("repository", [META, "meta-llama/Llama-3.1-8B-Instruct", UNSLOTH])
def test_official_checkpoints_find_the_cached_llama(cache, tmp_path, caplog, repository):
    caplog.set_level(logging.INFO)
    snapshot, llama = put(cache, DEV, official()), put(cache, repository, LLAMA_FILES)
    assert parts({"folder": tmp_path.__class__(DEV)}) == {"folder": snapshot, "llama": llama}
    assert f"llama_in_the_cache checkpoint={snapshot} llama={llama}" in caplog.text
    folder = tmp_path / "HiDream-I1-Dev"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    assert parts({"folder": folder})["llama"] == llama


def test_metas_own_llama_comes_first(cache, tmp_path):
    put(cache, DEV, official())
    put(cache, UNSLOTH, LLAMA_FILES)
    llama = put(cache, META, LLAMA_FILES)
    assert parts({"folder": tmp_path.__class__(DEV)})["llama"] == llama
    (llama / "model.safetensors").unlink()
    assert UNSLOTH.replace("/", "--") in str(parts({"folder": tmp_path.__class__(DEV)})["llama"])


def test_what_is_named_is_not_replaced(cache, tmp_path):
    put(cache, META, LLAMA_FILES)
    put(cache, DEV, official())
    mine = tmp_path / "mine.gguf"
    assert parts({"folder": tmp_path.__class__(DEV), "llama": mine})["llama"] == mine
    whole = put(cache, "Runware/hidream-i1-dev", official() | {"text_encoder_4/config.json": b"{}"} | {
        "text_encoder_4/model.safetensors": b"0", "tokenizer_4/tokenizer.json": b"{}"
    })  # fmt: skip
    assert parts({"folder": tmp_path.__class__("Runware/hidream-i1-dev")}) == {"folder": whole}
    for other in (tmp_path / "comfy", tmp_path / "dev.gguf"):
        assert parts({"folder": other}) == {"folder": other}
    assert parts({}) == {}
