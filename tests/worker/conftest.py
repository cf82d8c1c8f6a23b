"""A worker's surroundings without a model."""

import asyncio

import pytest
from painter import Painter

from postgres import postgres

__all__ = ["postgres"]


@pytest.fixture
def painter():
    painter = Painter()
    painter.go_on.set()
    yield painter
    painter.go_on.set()


@pytest.fixture
def url(sqlite_copies, tmp_path):
    return sqlite_copies.url(tmp_path)


@pytest.fixture
def until():
    """Wait in the loop until a function says something true."""

    async def until(function):
        async with asyncio.timeout(20):
            while not (answer := function()):
                await asyncio.sleep(0.002)
        return answer

    return until
