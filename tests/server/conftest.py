"""The application on a real store and a real folder, called without a socket; tests act as the worker."""

import asyncio
import io
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from PIL import Image

from hidream.server.app import create_app
from hidream.server.service import Service, assemble
from hidream.settings.tables import Server, Settings, Webhooks
from hidream.store import claims, keys, predictions
from hidream.store.claims import Capacity
from hidream.store.database import Database
from hidream.types import MODELS, Mode

MODEL = "wavespeed-ai/hidream-i1-dev"
VERSIONS = dict.fromkeys(MODELS, dict.fromkeys(Mode, "v1"))


@dataclass
class Api:
    client: httpx.AsyncClient
    service: Service
    secret: str
    bearer: dict[str, str] = field(init=False)

    def __post_init__(self):
        self.bearer = {"Authorization": f"Bearer {self.secret}"}
        self.database, self.settings = self.service.database, self.service.settings

    async def submit(self, api="v3", query="", headers=None, model=MODEL, **body: Any):
        return await self.client.post(f"/api/{api}/{model}{query}", json=body, headers=self.bearer | (headers or {}))

    async def get(self, path):
        return await self.client.get(path, headers=self.bearer)

    async def post(self, path, **body):
        return await self.client.post(path, json=body, headers=self.bearer)

    async def raw(self, path, content, content_type="application/json"):
        return await self.client.post(path, content=content, headers=self.bearer | {"Content-Type": content_type})

    async def delete(self, path):
        return await self.client.delete(path, headers=self.bearer)

    async def key(self, *scopes, **limits):
        """Make another key; the headers that carry it."""
        _, secret = await keys.create(self.database, "other", scopes or keys.DEFAULT_SCOPES, keys.Limits(**limits))
        return {"Authorization": f"Bearer {secret}"}

    async def claim(self):
        """Take the task whose turn it is, as a worker does; None if there is none."""
        room = Capacity(tasks=1, work=2**62, has_tasks=False)
        tasks = await claims.claim(self.database, list(MODELS), "host:1", VERSIONS, 15, room)
        return tasks[0] if tasks else None

    async def draw(self, data=b"the image", has_nsfw=False, warnings=()):
        """Do what a worker does with a task; `data` is the file of each image, or one for each."""
        async with asyncio.timeout(10):
            while (task := await self.claim()) is None:
                await asyncio.sleep(0.005)
        files = data if isinstance(data, list) else [data] * len(task.output_names)
        for name, file in zip(task.output_names, files, strict=True):
            await self.service.outputs.write(name, file)
        nsfw = [has_nsfw] * task.input.num_images
        assert await predictions.complete(self.database, task, nsfw, 1234, warnings)
        return task

    async def fail(self, code, error):
        """Do what a worker does with a task that cannot be drawn."""
        async with asyncio.timeout(10):
            while (task := await self.claim()) is None:
                await asyncio.sleep(0.005)
        assert await predictions.fail(self.database, task, code, error)


@pytest.fixture
def open_apis(sqlite_copies, tmp_path):
    """Open as many applications, each with a connection of its own to one database.

    Keywords are settings of the table [server].
    """

    @asynccontextmanager
    async def open_apis(instances, *, allowed="", **server):
        sqlite_copies.url(tmp_path)
        settings = replace(Settings(home=tmp_path), server=Server(**server), webhooks=Webhooks(allowed=allowed))
        apis, secret = [], None
        async with AsyncExitStack() as stack:
            for _ in range(instances):
                database = await stack.enter_async_context(Database.open(settings.database_url))
                secret = secret or (await keys.create(database, "test"))[1]
                service = assemble(settings, database)
                transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
                client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)
                apis.append(Api(await stack.enter_async_context(client), service, secret))
            yield apis

    return open_apis


@pytest.fixture
def open_api(open_apis):
    """Open one application; keywords as for `open_apis`."""

    @asynccontextmanager
    async def open_api(**settings):
        async with open_apis(1, **settings) as (api,):
            yield api

    return open_api


@pytest.fixture
async def api(open_api):
    """The application with default settings."""
    async with open_api() as api:
        yield api


@pytest.fixture
def make_image():
    """Make the bytes of an image's file."""

    def make(kind="PNG", size=(8, 8), **options):
        file = io.BytesIO()
        Image.new("RGB", size, (200, 30, 60)).save(file, kind, **options)
        return file.getvalue()

    return make
