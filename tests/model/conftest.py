"""Loaded models that several test files share."""

from __future__ import annotations

import pytest

from hidream.model.loading import load
from hidream.model.model import Model
from hidream.types import Variant


@pytest.fixture(scope="session")
def dev() -> Model:
    return load(Variant.DEV)


@pytest.fixture(scope="session")
def full() -> Model:
    return load(Variant.FULL)
