"""What a client has deleted cannot be downloaded any more after the response."""

import asyncio
import time
from dataclasses import replace

import pytest

from fakes import Away, Hangs
from hidream.outputs.folder import Folder
from hidream.outputs.object_store import Namespace
from hidream.server import removal
from hidream.server.background.sweep import Sweep
from hidream.server.removal import remove_files


async def test_the_files_of_a_deleted_prediction_are_gone_at_once(api):
    await api.submit(prompt="a house", num_images=3)
    task = await api.draw()
    await api.submit(prompt="another")
    other = await api.draw()
    assert (await api.delete(f"/api/v3/predictions/{task.id}")).json()["data"]["status"] == "deleted"
    for name in task.output_names:
        assert (await api.client.get(f"/outputs/{name}")).status_code == 404
    assert (await api.client.get(f"/outputs/{other.output_name}")).status_code == 200
    answer = await api.post("/api/v3/predictions/delete", ids=[other.id])
    assert answer.json()["data"] == {"deleted_count": 1}
    assert (await api.client.get(f"/outputs/{other.output_name}")).status_code == 404


@pytest.mark.parametrize("kind", [Away, Hangs])
async def test_what_cannot_be_removed_is_left_to_the_sweep(monkeypatch, caplog, kind, open_api):
    monkeypatch.setattr(removal, "WITHIN_S", 0.05)

    async with open_api() as api:
        await api.submit(prompt="a house")
        task = await api.draw()
        client = api.client._transport.app.state
        client.service = replace(api.service, outputs=kind(api.settings.home, Namespace.OUTPUTS))
        assert (await api.delete(f"/api/v3/predictions/{task.id}")).status_code == 200
        assert "file_removal_failed count=1" in caplog.text
        client.service = api.service
        assert await Sweep(api.service).once() == 1
        assert (await api.client.get(f"/outputs/{task.output_name}")).status_code == 404


async def test_five_hundred_are_deleted_without_holding_up_the_others(api):
    for _ in range(5):
        await asyncio.gather(*(api.submit(prompt="a house", num_images=4, size="256*256") for _ in range(100)))
    for _ in range(60):
        await api.draw()
    listed = [(await api.post("/api/v3/predictions", page=i, page_size=100)).json()["data"] for i in range(1, 6)]
    ids = [item["id"] for page in listed for item in page["items"]]
    assert len(ids) == 500
    gaps = []

    async def tick():
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - began)

    ticking = asyncio.create_task(tick())
    answer = await api.post("/api/v3/predictions/delete", ids=ids)
    ticking.cancel()
    assert answer.json()["data"] == {"deleted_count": 500}
    assert max(gaps) < 1
    assert not [path for path in (api.settings.home / "outputs").iterdir() if path.is_file()]
    assert await api.claim() is None
    print(f"longest gap {max(gaps):.3f} s")  # noqa: T201


async def test_files_are_removed_of_what_is_given(tmp_path):
    await remove_files(Folder(tmp_path, Namespace.OUTPUTS), [])
