"""An installation that `hidream store copy` has moved: a server on the copy continues the old one's work."""

import asyncio
import re
from dataclasses import replace

import httpx
import pytest

from hidream import cli
from hidream.server.app import create_app
from hidream.server.service import assemble
from hidream.settings.tables import Settings, Store
from hidream.store.database import Database
from postgres import postgres
from s3_server import KEY_ID, SECRET, S3Server

__all__ = ["postgres"]

pytestmark = pytest.mark.integration


async def hidream(*argv):
    return await asyncio.to_thread(cli.main, argv)


async def test_a_server_on_the_copy_serves_the_old_urls(open_api, postgres, tmp_path, monkeypatch, capsys):
    async with open_api() as api:
        submitted = (await api.submit(prompt="a fox")).json()["data"]
        task = await api.draw(b"the image")
        before = (await api.get(f"/api/v3/predictions/{submitted['id']}")).json()["data"]
        waiting = (await api.submit(prompt="an owl")).json()["data"]["id"]
    database_url = postgres.url()
    with S3Server(tmp_path / "s3") as s3:
        for name, value in {"ENDPOINT": s3.endpoint, "ACCESS_KEY_ID": KEY_ID, "SECRET_ACCESS_KEY": SECRET}.items():
            monkeypatch.setenv(f"HIDREAM_OUTPUTS_{name}", value)
        monkeypatch.setenv("HIDREAM_OUTPUTS_REGION", "us-east-1")
        assert await hidream("store", "copy", str(tmp_path / "hidream.db"), database_url) == 0
        assert await hidream("store", "copy", str(tmp_path), s3.url("moved")) == 0
        said = capsys.readouterr().out
        assert "2 predictions" in said
        assert "copied 1 files" in said

        outputs = replace(Settings(home=tmp_path).outputs, url=s3.url("moved"), **access(s3))
        settings = Settings(home=tmp_path / "new", store=Store(database_url=database_url), outputs=outputs)
        async with Database.open(database_url, make=False) as database:
            transport = httpx.ASGITransport(create_app(assemble(settings, database)), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=api.bearer) as client:
                after = (await client.get(f"/api/v3/predictions/{submitted['id']}")).json()["data"]
                assert after == before
                assert (await client.get(after["outputs"][0])).content == b"the image"
                assert (await client.get(f"/api/v3/predictions/{waiting}")).json()["data"]["status"] == "created"
    assert task.output_names[0] in before["outputs"][0]


def access(s3):
    access = s3.access()
    names = ("endpoint", "region", "access_key_id", "secret_access_key")
    return {name: getattr(access, name) for name in names}


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        ("old.db", "s3://bucket/prefix", "one of FROM and TO is a database"),
        ("files", "files/", "FROM and TO are both"),
        ("mysql://host/db", "new.db", "one of FROM and TO is a database"),
        ("old.db", "postgresql://host/db", r"accepted: sqlite\+aiosqlite:///FILE, postgresql\+asyncpg"),
        ("old.db", "new.db", "there is no database"),
        ("files", "ftp://host/files", "the location of files is 'ftp"),
        ("nowhere", "files", "FROM has no files"),
    ],
)
async def test_what_cannot_be_copied_is_said_in_one_line(tmp_path, monkeypatch, capsys, source, target, named):
    monkeypatch.chdir(tmp_path)
    assert await hidream("store", "copy", source, target) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(named, error), error
    assert not list(tmp_path.iterdir())
