"""A running service for all tests, one for each test that breaks it, and the old client."""

import subprocess
import sys
from pathlib import Path

import pytest
from service import Service

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("shared") / "home")
    service.wait_until_ready()
    yield service
    assert service.stop() == 0


@pytest.fixture
def own_service(tmp_path):
    """A service that a test may break."""
    service = Service(tmp_path / "home")
    service.wait_until_ready()
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="session")
def wavespeed_005():
    """The folder of the old client, installed once beside the checkout."""
    folder = ROOT / ".cache" / "wavespeed-0.0.5"
    if not (folder / "wavespeed").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, "wavespeed==0.0.5"], check=True, timeout=120)
    return folder
