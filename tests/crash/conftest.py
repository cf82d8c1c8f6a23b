"""The folders of the sweep's databases and files."""

import tempfile
from pathlib import Path

import pytest

from postgres import postgres
from s3_server import KEY_ID, SECRET, S3Server

__all__ = ["postgres"]

LANES = 2  # as many as machines have cores that run all of this
IN_MEMORY = "/dev/shm"


@pytest.fixture
def folder():
    """In memory where that is possible: the sweep ends processes, not machines, and would wait for the disk mostly."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if Path(IN_MEMORY).is_dir() else None) as made:
        yield Path(made)


@pytest.fixture
def sqlite_urls(folder):
    return [f"sqlite+aiosqlite:///{folder}/lane{number}.db" for number in range(LANES)]


@pytest.fixture
def postgresql_urls(postgres):
    made = [postgres.url() for _ in range(LANES)]
    yield made
    for url in made:
        postgres.drop(url)


@pytest.fixture
def bucket(folder):
    """What settings say of a bucket of a real S3 server."""
    with S3Server(folder / "s3") as s3:
        access = {"access_key_id": KEY_ID, "secret_access_key": SECRET, "region": "us-east-1"}
        yield {"url": s3.url(), "endpoint": s3.endpoint, **access}
