"""A database without rows on a clock that the test sets: each test runs on both kinds."""

import pytest

from databases import url_in
from fakes import Clock
from hidream.store import postgresql
from hidream.store.database import Database
from postgres import postgres

__all__ = ["postgres"]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sqlite_url(sqlite_copies, tmp_path):
    return sqlite_copies.url(tmp_path)


@pytest.fixture
def postgresql_url(postgres, monkeypatch):
    monkeypatch.setattr(postgresql, "WAIT_S", 60.0)  # a machine that is busy is no server that is away
    with postgres.lend() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def new_url(request, tmp_path):
    """Of a database without tables."""
    if request.param == "sqlite":
        return url_in(tmp_path)
    return request.getfixturevalue("postgres").url()


@pytest.fixture
async def database(url, clock):
    async with Database.open(url, clock) as database:
        yield database
