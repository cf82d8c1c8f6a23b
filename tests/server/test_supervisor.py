"""The worker as a child of the server: its settings, and when it is not restarted."""

import asyncio
from dataclasses import replace

import pytest

from hidream.server.supervisor import keep_worker
from hidream.settings.sources import load, to_environ
from hidream.settings.tables import Models, Server, Settings, Store
from hidream.store.database import Database


def test_the_worker_gets_the_servers_settings_but_neither_its_key_nor_the_pepper(tmp_path):
    usual = Settings(home=tmp_path, server=Server(port=0, sync_timeout_s=1.5))
    environ = to_environ(replace(usual, api_key="secret", store=Store(key_pepper="a pepper of sixteen")))
    assert not {"secret", "a pepper of sixteen"} & set(environ.values())
    assert load(environ) == usual


@pytest.mark.integration
async def test_what_kubernetes_has_put_into_the_environment_does_not_reach_the_worker(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HIDREAM_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HIDREAM_SERVER_PORT", "tcp://10.0.0.1:8000")
    settings = Settings(home=tmp_path, models=Models(dev=tmp_path / "nothing"))

    async with Database.open(settings.database_url) as database, asyncio.timeout(60):
        await keep_worker(settings, database)
    log = capfd.readouterr().err
    assert "worker_cannot_start" in log
    assert "environment_ignored" not in log


@pytest.mark.integration
async def test_a_start_that_is_hopeless_is_not_tried_again(tmp_path):
    settings = Settings(home=tmp_path, models=Models(dev=tmp_path / "nothing"))

    async with Database.open(settings.database_url) as database, asyncio.timeout(60):
        assert await keep_worker(settings, database) == 1
