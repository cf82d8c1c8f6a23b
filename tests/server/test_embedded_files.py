"""Images within JSON: the same bytes as before, and not in memory while a client reads slowly."""

import asyncio
import base64
import json
import random
import tracemalloc

import pytest
import uvicorn
from served import told
from starlette.responses import JSONResponse

from hidream.server.app import create_app
from hidream.server.edge.connections import Connections
from hidream.server.edge.listener import listen
from hidream.server.embedded_files import CHUNK_BYTES
from hidream.settings.tables import Server

SIZES_BYTES = (1, 3 * 2**18 + 2, CHUNK_BYTES, 2 * CHUNK_BYTES + 1)
READERS = 8
READER_MAX_BYTES = 2**19
"""Of 32 MiB that each has asked for."""


async def drawn(api, sizes_bytes=SIZES_BYTES, **body):
    """A finished task, and its images as base64."""
    asked = await api.submit(prompt="a", num_images=len(sizes_bytes), enable_base64_output=True, **body)
    files = images(sizes_bytes)
    await api.draw(files, warnings=["größer als gewöhnlich"])
    return asked.json()["data"]["id"], [base64.b64encode(file).decode() for file in files]


def images(sizes_bytes):
    return [random.Random(size).randbytes(size) for size in sizes_bytes]


def same_as_of_old(answer):
    """What the answer says, whose bytes and headers are those of a JSONResponse."""
    assert answer.status_code == 200, answer.text
    old = JSONResponse(answer.json())
    assert answer.content == old.body
    for header in ("Content-Length", "Content-Type"):
        assert answer.headers[header] == old.headers[header]
    assert "Transfer-Encoding" not in answer.headers
    return answer.json()


@pytest.mark.parametrize("version", ["v2", "v3"])
async def test_a_result_has_the_bytes_of_old(api, version):
    prediction_id, texts = await drawn(api)
    data = same_as_of_old(await api.get(f"/api/{version}/predictions/{prediction_id}/result"))["data"]
    assert data["outputs"] == texts
    assert data["warnings"] == ["größer als gewöhnlich"]


@pytest.mark.parametrize("version", ["v2", "v3"])
async def test_a_submission_that_waits_and_one_that_is_repeated(api, version):
    body = {"prompt": "a", "enable_base64_output": True, "enable_sync_mode": True}
    asking = asyncio.create_task(api.submit(version, headers={"Idempotency-Key": "k"}, **body))
    task = await api.draw(b"the image")
    first = same_as_of_old(await asking)
    assert first["data"]["outputs"] == [base64.b64encode(b"the image").decode()]
    again = await api.submit(version, headers={"Idempotency-Key": "k"}, **body)
    assert same_as_of_old(again) == first
    assert again.headers["Idempotent-Replayed"] == "true"
    assert task.id == first["data"]["id"]


async def test_openai_has_the_bytes_of_old(api):
    body = {"prompt": "a", "n": 4, "response_format": "b64_json"}
    headers = api.bearer | {"Idempotency-Key": "k"}
    asking = asyncio.create_task(api.client.post("/v1/images/generations", json=body, headers=headers))
    files = images(SIZES_BYTES)
    await api.draw(files)
    texts = [base64.b64encode(file).decode() for file in files]
    same_as_of_old(await asking)
    answer = await api.client.post("/v1/images/generations", json=body, headers=headers)
    assert same_as_of_old(answer)["data"] == [{"b64_json": text} for text in texts]


async def test_events_have_them_too(api):
    prediction_id, texts = await drawn(api)
    ((name, _, data),) = told((await api.get(f"/api/v3/predictions/{prediction_id}/events")).text)
    result = await api.get(f"/api/v3/predictions/{prediction_id}")
    assert (name, data) == ("status", json.dumps(result.json()["data"]))
    assert json.loads(data)["outputs"] == texts


@pytest.mark.parametrize("gone", range(4))
async def test_an_image_that_is_gone_is_an_error_and_not_half_an_answer(api, gone):
    prediction_id, _ = await drawn(api)
    listed = (await api.post("/api/v3/predictions", page=1)).json()["data"]["items"][0]["outputs"]
    await api.service.outputs.delete([listed[gone].rpartition("/")[2]])
    answer = await api.get(f"/api/v3/predictions/{prediction_id}/result")
    assert (answer.status_code, answer.json()["error"]) == (404, "there is no such file")


async def test_an_image_that_cannot_be_read_is_an_error_and_not_half_an_answer(api):
    prediction_id, _ = await drawn(api)
    listed = (await api.post("/api/v3/predictions", page=1)).json()["data"]["items"][0]["outputs"]
    path = api.service.outputs.path / listed[0].rpartition("/")[2]
    path.unlink()
    path.mkdir()
    assert (await api.get(f"/api/v3/predictions/{prediction_id}/result")).status_code == 503


@pytest.mark.parametrize("path", ["result", "events"])
async def test_readers_that_do_not_read_cost_little(api, path):
    """And who reads on at last gets all of it."""

    prediction_id, texts = await drawn(api, sizes_bytes=(6 * 2**20,) * 4)
    sent = f"GET /api/v3/predictions/{prediction_id}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    sent += f"Authorization: Bearer {api.secret}\r\n\r\n"
    with listen(Server(port=0)) as listener:
        connections = Connections(100)
        config = uvicorn.Config(
            create_app(api.service), http=connections.connection, ws="none", lifespan="off", log_config=None
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        tracemalloc.start()
        try:
            async with asyncio.timeout(60):
                before, _ = tracemalloc.get_traced_memory()
                clients = [await unread(listener.getsockname(), sent.encode()) for _ in range(READERS)]
                while sum(each.flow.write_paused for each in connections.open) < READERS:
                    await asyncio.sleep(0.01)
                held = tracemalloc.get_traced_memory()[0] - before
                for _, writer in clients[1:]:
                    writer.close()
                reader, writer = clients[0]
                writer.transport.resume_reading()
                head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
                writer.close()
        finally:
            tracemalloc.stop()
            server.should_exit = True
            await serving
    assert held < READERS * READER_MAX_BYTES
    if path == "result":
        assert f"content-length: {len(answer)}".encode() in head
        assert json.loads(answer)["data"]["outputs"] == texts
    else:
        assert answer.endswith(b"\r\n0\r\n\r\n")


async def unread(address, sent):
    """A connection on which something is asked for, and not read."""
    reader, writer = await asyncio.open_connection(*address)
    writer.transport.pause_reading()
    writer.write(sent)
    return reader, writer
