"""A running service for all tests, and one for each test that breaks it."""

import pytest
from service import Service


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
