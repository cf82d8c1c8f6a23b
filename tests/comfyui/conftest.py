"""A running ComfyUI for the tests that need a real one: `COMFYUI=path make test-comfyui`. Others skip, and say so."""

import importlib.util
import os
import sys
from pathlib import Path

import launch_comfyui
import loaded_nodes
import pytest
import standin_comfyui
from running_comfyui import RunningComfyUI

sys.path.append(str(Path(__file__).parents[1] / "acceptance"))
from service import Service

if os.environ.get("COMFYUI"):  # its environment has a torchvision, which transformers imports
    launch_comfyui.tolerate_missing_operators()

SKIPPED = "no ComfyUI is named: COMFYUI=path make test-comfyui runs this"


@pytest.fixture(scope="session")
def comfyui_checkout():
    """The folder of a ComfyUI."""
    named = os.environ.get("COMFYUI")
    if not named:
        pytest.skip(SKIPPED)
    checkout = Path(named).resolve()
    assert (checkout / "main.py").is_file(), f"COMFYUI is {named!r}; accepted: a checkout of ComfyUI"
    assert importlib.util.find_spec("aiohttp"), f"{SKIPPED} in an environment that has ComfyUI's requirements"
    return checkout


@pytest.fixture(scope="session")
def comfyui(comfyui_checkout, tmp_path_factory):
    """A ComfyUI with our nodes, in a base directory of its own."""
    running = RunningComfyUI(comfyui_checkout, tmp_path_factory.mktemp("comfyui"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """A hidream server with the embedded model, in our own Python where ComfyUI's is another one."""
    Service.python = os.environ.get("SERVER_PYTHON", sys.executable)
    service = Service(tmp_path_factory.mktemp("served") / "home", HIDREAM_WORKER_SERVES="dev")
    try:
        service.wait_until_ready()
        yield service
    finally:
        status = service.stop()
    assert status == 0


@pytest.fixture
def standin(monkeypatch, tmp_path):
    """The stand-in of a ComfyUI, with our nodes loaded into it."""
    comfyui = standin_comfyui.installed(monkeypatch, tmp_path / "user")
    before = set(sys.modules)
    loaded_nodes.load(monkeypatch)
    yield comfyui
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == loaded_nodes.NAME:
            del sys.modules[name]
