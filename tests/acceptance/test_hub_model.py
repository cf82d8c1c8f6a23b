"""`hidream serve` with an id of the Hub whose files are in its cache: the README's line for the real model."""

from __future__ import annotations

from pathlib import Path

import pytest
from service import Service

import hidream
import hub_cache

NANO = Path(hidream.__file__).parent / "nano" / "dev"
DEV, LLAMA = "HiDream-ai/HiDream-I1-Dev", "meta-llama/Meta-Llama-3.1-8B-Instruct"


@pytest.fixture
def environ(tmp_path):
    official, _ = hub_cache.nano_files(NANO)
    hub_cache.put(tmp_path / "hf" / "hub", DEV, official)
    return {"HIDREAM_MODEL": DEV, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}


def test_an_id_of_the_hub_is_served_with_the_cached_llama(tmp_path, environ):
    _, llama = hub_cache.nano_files(NANO)
    hub_cache.put(tmp_path / "hf" / "hub", LLAMA, llama)
    service = Service(tmp_path / "home", **environ)
    service.wait_until_ready()
    assert service.draw(size="256*256", num_inference_steps=2)
    assert service.stop() == 0
    assert "llama_in_the_cache" in service.log.read_text()


def test_without_llama_the_server_ends_and_says_what_to_type(tmp_path, environ):
    service = Service(tmp_path / "home", **environ)
    assert service.process.wait(120) == 78
    log = " ".join(service.log.read_text().split())
    assert "do not include Llama-3.1-8B-Instruct: run `hidream models pull llama`" in log
    service.stop()
