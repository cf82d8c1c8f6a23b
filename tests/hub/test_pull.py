"""`hidream models pull` against a Hub: what it shows, what it requests, and what becomes of interruptions and lies."""

from __future__ import annotations

import os
import random
import signal
import time

import hub_server
import pytest
from hub_server import DEV, LLAMA

from hub_cache import COMMIT, digest_of

pytestmark = pytest.mark.integration

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CONTENT = random.Random(0).randbytes(3_000_000)
SMALL = {
    "model_index.json": b'{"_class_name": "HiDreamImagePipeline"}',
    "README.md": b"about",
    "images/sample.png": b"not needed",
    WEIGHTS: CONTENT,
    "transformer/config.json": b"{}",
    **{f"{part}/config.json": b"{}" for part in ("text_encoder", "text_encoder_2", "text_encoder_3", "vae")},
    **{f"{part}/model.safetensors": b"0" for part in ("text_encoder", "text_encoder_2", "text_encoder_3", "vae")},
    **{f"{part}/tokenizer.json": b"{}" for part in ("tokenizer", "tokenizer_2", "tokenizer_3")},
}
UNNEEDED = {"README.md", "images/sample.png"}
OTHER = "f" * 40


@pytest.fixture
def dev(hub):
    return hub.add(DEV, SMALL)


def partial(hidream, content=CONTENT, path=WEIGHTS):
    blobs = hidream.cache / "models--HiDream-ai--HiDream-I1-Dev" / "blobs"
    return blobs / f"{digest_of(path, content)}.incomplete"


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_downloads_what_is_needed_and_shows_it_before(hub, hidream, dev):
    out, _ = hidream.run("models", "pull", "dev", "--yes")
    snapshot = hidream.cache / "models--HiDream-ai--HiDream-I1-Dev" / "snapshots" / COMMIT
    found = {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()}
    assert found == {path: content for path, content in SMALL.items() if path not in UNNEEDED}
    assert f"{DEV} at commit {COMMIT[:12]}, licence: MIT" in out
    assert "3.0 MB  transformer/diffusion_pytorch_model.safetensors\n" in out
    assert "3.0 MB in all, 3.0 MB to download" in out
    assert f"are free at {hidream.cache}" in out
    assert "`hidream models pull llama`" in out
    assert sum(each.sent for each in hub.bodies(WEIGHTS)) == len(CONTENT)
    assert len(hub.bodies("/config.json")) + len(hub.bodies("tokenizer.json")) == 1, "equal files are downloaded once"


def test_what_is_in_the_cache_is_not_downloaded_again(hub, hidream, dev):
    hidream.run("models", "pull", "dev", "--yes")
    before = len(hub.requests)
    out, _ = hidream.run("models", "pull", "dev")  # nothing is asked where nothing is to be downloaded
    assert "0 B to download" in out
    assert out.count("(in the cache)") == len(SMALL) - len(UNNEEDED)
    assert [each.path for each in hub.requests[before:]] == [f"api/models/{DEV}/revision/main"]


def test_huggingface_hub_finds_what_was_downloaded(hub, hidream, dev):
    """And downloads nothing itself: `hf`, diffusers and we share the files."""
    hidream.run("models", "pull", "dev", "--yes")
    before = len(hub.requests)
    code = f"import huggingface_hub as h; print(h.snapshot_download({DEV!r}, allow_patterns=['transformer/*']))"
    done = hub_server.python(code, hidream.environ)
    assert done.strip().endswith(COMMIT)
    assert not [each for each in hub.requests[before:] if each.sent and "/resolve/" in each.path]


def test_a_dry_run_downloads_nothing(hub, hidream, dev):
    (plan,) = hidream.json("models", "pull", "dev", "--dry-run")
    assert (plan["model"], plan["commit"], plan["total_bytes"]) == (DEV, COMMIT, plan["to_download"])
    assert {each["path"] for each in plan["files"]} == SMALL.keys() - UNNEEDED
    assert plan["folder"] == ""
    assert not hub.bodies(WEIGHTS)
    assert not hidream.cache.exists()


def test_nobody_is_surprised_where_nobody_can_be_asked(hub, hidream, dev):
    _, err = hidream.run("models", "pull", "dev", status=1)
    assert "nobody can be asked whether to download 3.0 MB: standard input is no terminal; accepted: with --yes" in err
    assert not hub.bodies(WEIGHTS)


@pytest.mark.parametrize(("typed", "status"), [("y\n", 0), ("\n", 1), ("no\n", 1)])
def test_a_terminal_is_asked(hub, hidream, dev, typed, status):
    leader, follower = os.openpty()
    process = hub_server.on_terminal(hidream, follower, "models", "pull", "dev")
    os.write(leader, typed.encode())
    _, err = process.communicate(timeout=60)
    for each in (leader, follower):
        os.close(each)
    assert process.returncode == status, err
    assert "Download 3.0 MB? [y/N]" in err
    assert bool(hub.bodies(WEIGHTS)) == (status == 0)


# --- interruptions -----------------------------------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_where_it_broke(hub, hidream, dev):
    hub.cuts[WEIGHTS] = [1_000_000, 500_000]
    hidream.run("models", "pull", "dev", "--yes")
    bodies = hub.bodies(WEIGHTS)
    assert [each.range for each in bodies] == ["", "bytes=1000000-", "bytes=1500000-"]
    assert sum(each.sent for each in bodies) == len(CONTENT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_download_that_is_interrupted_goes_on_in_the_next(hub, hidream, dev, number):
    hub.held[WEIGHTS] = 2_000_000
    with hidream.start("models", "pull", "dev", "--yes", HF_HUB_DOWNLOAD_TIMEOUT="5") as process:
        file = partial(hidream)
        until(lambda: file.exists() and file.stat().st_size == 2_000_000)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert ("what has arrived stays" in err) == (number == signal.SIGINT)
    hub.released.set()
    (plan,) = hidream.json("models", "pull", "dev", "--dry-run")
    (weights,) = (each for each in plan["files"] if each["path"] == WEIGHTS)
    assert weights["to_download"] == 1_000_000
    _, err = hidream.run("models", "pull", "dev", "--yes", status=0)
    assert [each.range for each in hub.bodies(WEIGHTS)] == ["", "bytes=2000000-"]
    assert hub.bodies(WEIGHTS)[-1].sent == 1_000_000
    assert not file.exists()


def test_an_unfinished_download_is_not_the_model(hub, hidream, dev):
    hub.cuts[WEIGHTS], hub.statuses[WEIGHTS] = [1000], [0, 404]
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    assert f"{hub.url} answers 404 for {DEV}; what has arrived stays, try again" in err
    assert partial(hidream).stat().st_size == 1000
    _, err = hidream.run("generate", "a fox", "--model", DEV, status=1)
    assert f"{DEV} is neither a file or folder here nor in the Hub's cache" in err
    assert "`hidream models pull dev` downloads it (47.2 GB in all), and goes on" in err
    (row,) = (each for each in hidream.json("models", "list") if each["name"] == "dev")
    assert row["state"] == "incomplete"


def test_a_busy_hub_is_asked_again(hub, hidream, dev):
    hub.statuses[WEIGHTS] = [503, 429]
    hidream.run("models", "pull", "dev", "--yes")
    assert sum(each.sent for each in hub.bodies(WEIGHTS) if each.sent > 10) == len(CONTENT)


# --- wrong content -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [b"x" + CONTENT[1:], CONTENT[:-1] + b"x"])
def test_a_wrong_checksum_is_found_and_the_file_is_not_used(hub, hidream, dev, wrong):
    hub.replaced[WEIGHTS] = wrong
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    announced = digest_of(WEIGHTS, CONTENT)
    assert (
        f"{WEIGHTS} has arrived with the digest {digest_of(WEIGHTS, wrong)}, and the Hub announced {announced}" in err
    )
    assert not partial(hidream).exists()
    assert not partial(hidream).with_suffix("").exists()
    del hub.replaced[WEIGHTS]
    hidream.run("models", "pull", "dev", "--yes")
    assert partial(hidream).with_suffix("").read_bytes() == CONTENT


def test_a_wrong_small_file_is_found_too(hub, hidream, dev):
    hub.replaced["model_index.json"] = b"?" * len(SMALL["model_index.json"])
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    assert "has arrived with the digest" in err


def test_every_wrong_file_is_reported_and_the_others_are_kept(hub, hidream, dev):
    hub.replaced |= {WEIGHTS: b"x" * len(CONTENT), "vae/model.safetensors": b"1"}
    repository = hub.repositories[DEV].commits[COMMIT]
    repository["text_encoder/model.safetensors"] = b"2"  # so that the autoencoder's content is its alone
    repository["text_encoder_2/model.safetensors"] = repository["text_encoder_3/model.safetensors"] = b"2"
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    assert f"{WEIGHTS} has arrived" in err
    assert "vae/model.safetensors has arrived" in err
    hub.replaced.clear()
    hidream.run("models", "pull", "dev", "--yes")
    assert len([each for each in hub.bodies("model.safetensors") if "text_encoder" in each.path]) == 1


def test_an_earlier_part_that_is_wrong_is_downloaded_again(hub, hidream, dev):
    """Such as one of a torn disk: the digest is right in the end."""
    file = partial(hidream)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"?" * 1_000_000)
    hidream.run("models", "pull", "dev", "--yes")
    assert [each.range for each in hub.bodies(WEIGHTS)] == ["bytes=1000000-", ""]
    assert file.with_suffix("").read_bytes() == CONTENT


def test_a_longer_file_than_announced_is_refused(hub, hidream, dev):
    hub.replaced[WEIGHTS] = CONTENT + b"more"
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    assert f"{WEIGHTS} is longer than the 3,000,000 bytes announced" in err


@pytest.mark.parametrize("path", ["../../outside.json", "/etc/outside.json", "transformer/../../../outside.json"])
def test_a_path_that_leads_outside_is_refused(hub, hidream, dev, path):
    hub.repositories[DEV].commits[COMMIT][path] = b"{}"
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    assert f"the Hub names a file '{path}'; accepted: a path inside of its repository" in err


def test_a_digest_that_is_none_is_refused(hub, hidream, dev):
    dev.digests["model_index.json"] = "../../outside"
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    assert "the Hub says neither size nor digest of model_index.json" in err


@pytest.mark.parametrize("etag", ["e" * 64, "e" * 40, "../../../../outside"])
def test_an_etag_that_is_not_the_digest_changes_nothing(hub, hidream, dev, etag):
    hub.etags[WEIGHTS] = etag
    hidream.run("models", "pull", "dev", "--yes")
    snapshot = hidream.cache / "models--HiDream-ai--HiDream-I1-Dev" / "snapshots" / COMMIT
    assert (snapshot / WEIGHTS).resolve().name == digest_of(WEIGHTS, CONTENT)
    assert not list(hidream.folder.rglob("outside*"))
    assert sum(each.sent for each in hub.bodies(WEIGHTS)) == len(CONTENT), "it is downloaded once"


@pytest.mark.parametrize(
    "description",
    [b"<html>", b'{"id": ', b"[]", b"null", b"{}", b'{"id": "a", "siblings": 7}', b'{"id": "a", "siblings": [7]}'],
)
def test_a_description_that_is_none_is_an_error(hub, hidream, dev, description):
    hub.description = description
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    assert f"hidream: {hub.url} answers for {DEV}, but not with the description" in err or "the Hub names" in err


def test_two_processes_pull_one_model(hub, hidream, dev):
    processes = [hidream.start("models", "pull", "dev", "--yes") for _ in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    hidream.run("models", "verify", "dev")
    assert sum(each.sent for each in hub.bodies(WEIGHTS)) == len(CONTENT), "it is downloaded once"
    assert not [*hidream.cache.rglob("*.new"), *hidream.cache.rglob("*.incomplete")]


def test_whoever_waits_for_another_process_can_be_interrupted(hub, hidream, dev):
    hub.held[WEIGHTS] = 1000
    with hidream.start("models", "pull", "dev", "--yes", HF_HUB_DOWNLOAD_TIMEOUT="60") as first:
        until(lambda: partial(hidream).exists() and partial(hidream).stat().st_size == 1000)
        with hidream.start("models", "pull", "dev", "--yes") as second:
            until(lambda: sum(each.path.startswith("api/models/") for each in hub.requests) == 2)
            second.send_signal(signal.SIGINT)
            second.communicate(timeout=30)
        assert second.returncode == 130
        hub.released.set()
        first.communicate(timeout=60)
    assert first.returncode == 0


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_gated_repository_says_what_to_accept_and_where(hub, hidream):
    hub.add(LLAMA, {"config.json": b"{}", "model.safetensors": b"0", "tokenizer.json": b"{}"}, gated=True)
    _, err = hidream.run("models", "pull", "llama", "--yes", status=1)
    assert f"{LLAMA} is gated, and you are not logged in: accept the Llama 3.1 Community License at" in err
    assert f" {hub.url}/{LLAMA} " in err
    assert "`hf auth login`, or set HF_TOKEN" in err
    assert "`hidream models pull unsloth/Meta-Llama-3.1-8B-Instruct`" in err
    _, err = hidream.run("models", "pull", "llama", "--yes", status=1, HF_TOKEN="hf_without_access")
    assert "the account of your token has no access yet" in err
    assert "hf_without_access" not in err
    hidream.run("models", "pull", "llama", "--yes", HF_TOKEN=hub_server.TOKEN)
    (row,) = (each for each in hidream.json("models", "list") if each["name"] == "llama")
    assert row["state"] == "complete"
    elsewhere = [each for each in hub.requests if each.path.startswith("cdn/")]
    assert elsewhere
    assert not any(each.authorization for each in elsewhere), "the token is for the Hub alone"


def test_an_unknown_repository_is_an_error(hub, hidream):
    for environ in ({}, {"HF_TOKEN": hub_server.TOKEN}):
        _, err = hidream.run("models", "pull", "somebody/nothing", "--yes", status=1, **environ)
        assert "the Hub has no somebody/nothing, or not for you" in err


@pytest.mark.parametrize("name", ["owner/a--b", "owner/a..b", "owner/a.git"])
def test_an_id_that_the_hub_cannot_have_is_an_error(hidream, name):
    _, err = hidream.run("models", "pull", name, status=1)
    assert f"{name} is no id of the Hub" in err


def test_an_unknown_name_is_an_error(hidream):
    _, err = hidream.run("models", "pull", "deev", "--yes", status=1)
    assert "'deev' is no model; accepted: dev, full, fast, llama, or an id of the Hub" in err


def test_an_unknown_revision_is_an_error(hidream, dev):
    _, err = hidream.run("models", "pull", "dev", "--revision", "v9", "--yes", status=1)
    assert f"{DEV} has no revision 'v9'" in err
    _, err = hidream.run("models", "pull", "dev@../../x", "--yes", status=1)
    assert "the revision is '../../x'" in err


def test_offline_nothing_is_requested(hub, hidream, dev):
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in err
    assert not hub.requests


def test_a_hub_that_does_not_answer_is_an_error(hidream):
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in err


def test_more_than_the_disk_has_is_refused_before_anything_is_downloaded(hub, hidream, dev):
    dev.sizes[WEIGHTS] = 10**15
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    assert f"{DEV} needs 1000000.0 GB more, and " in err
    assert "accepted: a larger disk, which HF_HOME names" in err
    assert not any("/resolve/" in each.path for each in hub.requests)


def test_a_disk_that_fills_up_is_an_error(hidream, dev):
    file = partial(hidream)
    file.parent.mkdir(parents=True)
    file.symlink_to("/dev/full")
    _, err = hidream.run("models", "pull", "dev", "--yes", status=1)
    assert f"no space is left for {WEIGHTS} in {file.parent}" in err


# --- which files and which revision --------------------------------------------------------------------------------


def test_a_revision_is_pinned(hub, hidream, dev):
    dev.commits[OTHER] = SMALL | {"model_index.json": b'{"new": 1}'}
    hidream.run("models", "pull", f"dev@{COMMIT}", "--yes")
    folder = hidream.cache / "models--HiDream-ai--HiDream-I1-Dev"
    assert not (folder / "refs" / "main").exists()
    dev.branches |= {"main": OTHER, "v1": COMMIT}
    hidream.run("models", "pull", "dev", "--yes")
    assert (folder / "refs" / "main").read_text() == OTHER
    assert len(hub.bodies(WEIGHTS)) == 1, "what both commits have is downloaded once"
    hidream.run("models", "pull", "dev", "--revision", "v1")
    assert (folder / "refs" / "v1").read_text() == COMMIT


def test_a_branch_that_moves_means_the_old_files_until_the_new_ones_are_there(hub, hidream, dev):
    hidream.run("models", "pull", "dev", "--yes")
    changed = CONTENT[::-1]
    dev.commits[OTHER] = SMALL | {WEIGHTS: changed}
    dev.branches["main"] = OTHER
    hub.cuts[WEIGHTS], hub.statuses[WEIGHTS] = [1000], [0, 404]
    hidream.run("models", "pull", "dev", "--yes", status=1)
    folder = hidream.cache / "models--HiDream-ai--HiDream-I1-Dev"
    assert (folder / "refs" / "main").read_text() == COMMIT


def test_a_repository_of_many_models_asks_which(hub, hidream):
    files = {"dev-Q4_K_M.gguf": b"4", "dev-Q8_0.gguf": b"8", "README.md": b""}
    hub.add("city96/HiDream-I1-Dev-gguf", files)
    _, err = hidream.run("models", "pull", "city96/HiDream-I1-Dev-gguf", "--yes", status=1)
    assert "has several models: name files with --include, such as dev-Q4_K_M.gguf (0.0 GB), dev-Q8_0.gguf" in err
    hidream.run("models", "pull", "city96/HiDream-I1-Dev-gguf", "--include", "*Q4_K_M*", "--yes")
    (row,) = (each for each in hidream.json("models", "list") if each["name"].startswith("city96"))
    assert (row["state"], row["size_bytes"]) == ("complete", 1)
    _, err = hidream.run("models", "pull", "city96/HiDream-I1-Dev-gguf", "--include", "*Q9*", "--yes", status=1)
    assert "no file of city96/HiDream-I1-Dev-gguf matches *Q9*" in err


def test_several_models_at_once(hub, hidream, dev):
    hub.add(LLAMA, {"config.json": b"{}", "model.safetensors": b"0", "tokenizer.json": b"{}", "original/x.pth": b"no"})
    out, _ = hidream.run("models", "pull", "dev", "llama", "--yes")
    assert f"{DEV}: complete" in out
    assert f"{LLAMA}: complete" in out
    assert f'Now: hidream generate "a fox in the snow" --model {DEV}' in out
    assert not hub.bodies("x.pth")
