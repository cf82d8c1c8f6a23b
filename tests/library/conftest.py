"""A pipeline of nano that the tests of the library share."""

from __future__ import annotations

import pytest

from hidream import Pipeline


@pytest.fixture(scope="session")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained()


@pytest.fixture(scope="session")
def full() -> Pipeline:
    return Pipeline.from_pretrained(variant="full")
