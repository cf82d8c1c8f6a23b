"""A running service for all tests, and one for each test that breaks it."""

import pytest
from service import Service

from hidream.model.loading import load
from hidream.types import Variant


@pytest.fixture(scope="session")
def loras(tmp_path_factory):
    """The folder of LoRAs that the running service looks into."""
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="session")
def service(tmp_path_factory, loras):
    service = Service(tmp_path_factory.mktemp("shared") / "home", HIDREAM_MODELS_LORAS=str(loras))
    service.wait_until_ready()
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="session")
def library():
    """The model of the service in this process."""
    return load(Variant.DEV)


@pytest.fixture
def own_service(request, tmp_path):
    """A service that a test may break; a test that wants more than Dev says so as the parameter."""
    service = Service(tmp_path / "home", HIDREAM_WORKER_SERVES=getattr(request, "param", "dev"))
    service.wait_until_ready()
    yield service
    assert service.stop() == 0
