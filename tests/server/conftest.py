"""The application on a real store and a real folder, called without a socket; the worker's part is played by hand."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from hidream.outputs import files
from hidream.server.app import create_app
from hidream.settings import Server, Settings
from hidream.store import keys, predictions
from hidream.store.database import Database
from hidream.types import Mode

MODEL = "wavespeed-ai/hidream-i1-dev"


@dataclass
class Api:
    client: httpx.AsyncClient
    database: Database
    settings: Settings
    secret: str
    bearer: dict[str, str] = field(init=False)

    def __post_init__(self):
        self.bearer = {"Authorization": f"Bearer {self.secret}"}

    async def submit(self, api="v3", query="", **body: Any):
        return await self.client.post(f"/api/{api}/{MODEL}{query}", json=body, headers=self.bearer)

    async def get(self, path):
        return await self.client.get(path, headers=self.bearer)

    async def draw(self, data=b"the picture", has_nsfw=False, warnings=()):
        """Do what a worker does with the oldest task."""
        task = await predictions.claim(self.database, [MODEL], "host:1", dict.fromkeys(Mode, "v1"), 15)
        await files.write(self.settings.outputs_dir, task.output_name, data)
        assert await predictions.complete(self.database, task, has_nsfw, 1234, warnings)


@pytest.fixture
def with_api(tmp_path):
    """Run `scenario(api)` in an event loop of its own; keywords are settings of the table [server]."""

    def run(scenario, **server):
        async def main():
            settings = replace(Settings(home=tmp_path), server=Server(**server))
            async with Database.open(settings.database_url) as database:
                _, secret = await keys.create(database, "test")
                transport = httpx.ASGITransport(create_app(settings, database), raise_app_exceptions=False)
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    return await scenario(Api(client, database, settings, secret))

        return asyncio.run(main())

    return run
