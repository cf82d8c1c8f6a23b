"""`hidream mcp` as a host of language models starts it: the SDK's own client, over stdio, to a real server."""

import asyncio
import base64
import json
import os
import sys
from contextlib import asynccontextmanager

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from served import served

from hidream import cli, mcp_server
from hidream.store import history, keys
from hidream.types import FORMAT_NAMES, SEED_MAX, STEPS_MAX, Status


@asynccontextmanager
async def client_of(url, key, **environ):
    environ = {
        "HIDREAM_MCP_URL": url,
        "HIDREAM_API_KEY": key,
        "HIDREAM_HOME": "/nowhere",
        "PATH": os.environ["PATH"],
    } | environ
    server = StdioServerParameters(command=sys.executable, args=["-m", "hidream.cli", "mcp"], env=environ)
    async with Client(stdio_client(server)) as client:
        yield client


async def test_an_image_is_drawn_and_comes_with_its_seed(api, make_image):
    async with served(api) as http, client_of(str(http.base_url), api.secret) as client:
        (tool,) = (await client.list_tools()).tools
        assert tool.name == "generate"
        assert set(tool.input_schema["required"]) == {"prompt"}
        described = tool.input_schema["properties"]
        assert described.keys() == {*mcp_server.OFFERED, "model"}
        assert described["seed"]["maximum"] == SEED_MAX
        assert described["output_format"]["enum"] == list(FORMAT_NAMES)
        assert described["num_inference_steps"]["anyOf"][0]["maximum"] == STEPS_MAX
        asked = {"prompt": "a fox", "size": "512*256", "seed": 7, "output_format": "png", "guidance_scale": 3}
        calling = asyncio.create_task(client.call_tool("generate", asked))
        drawn = await api.draw(make_image("PNG"))
        result = await calling
    assert not result.is_error, result
    image, text = result.content
    assert base64.b64decode(image.data) == make_image("PNG")
    assert image.mime_type == "image/png"
    about = json.loads(text.text)
    assert about == result.structured_content
    assert (about["seed"], about["id"], about["model"]) == (7, drawn.id, "wavespeed-ai/hidream-i1-dev")
    assert [warning.partition(" ")[0] for warning in about["warnings"]] == ["guidance_scale"]
    assert about["url"].endswith(drawn.output_name)
    assert (drawn.input.prompt, str(drawn.input.size)) == ("a fox", "512*256")


async def test_what_goes_wrong_is_said_to_the_model(api):
    async with served(api) as http:
        url = str(http.base_url)
        async with client_of(url, api.secret) as client:
            bad = await client.call_tool("generate", {"prompt": "a fox", "size": "9*9"})
            assert (bad.is_error, "400: size is '9*9'" in bad.content[0].text) == (True, True)
            calling = asyncio.create_task(client.call_tool("generate", {"prompt": "a fox"}))
            await api.fail(1405, "the image could not be generated")
            failed = await calling
            assert (failed.is_error, "the image could not be generated" in failed.content[0].text) == (True, True)
        async with client_of(url, "hd_wrong") as client:
            refused = await client.call_tool("generate", {"prompt": "a fox"})
            assert (refused.is_error, "401: the API key is not known" in refused.content[0].text) == (True, True)
    async with client_of("http://127.0.0.1:1", "hd_any") as client:
        away = await client.call_tool("generate", {"prompt": "a fox"})
        assert (away.is_error, "http://127.0.0.1:1 does not answer" in away.content[0].text) == (True, True)


async def test_an_image_that_nobody_waits_for_is_cancelled(monkeypatch, open_api):
    monkeypatch.setattr(mcp_server, "POLL_S", 0.2)

    async with open_api() as api, served(api) as http:
        caller = mcp_server.Caller(str(http.base_url), api.secret, timeout_s=0.3)
        async with Client(mcp_server.build(caller)) as client:
            late = await client.call_tool("generate", {"prompt": "a fox"})
        assert (late.is_error, "not finished within 0.3 seconds" in late.content[0].text) == (True, True)
        key = (await keys.list_keys(api.database))[0]
        _, (prediction,) = await history.list_predictions(api.database, key.id, history.Query())
        ended = await api.service.completion_waiter.wait(
            prediction.id, key.id, 20
        )  # it does not wait for that for long
        assert ended.status is Status.CANCELLED


@pytest.mark.parametrize(
    ("environ", "said"), [({}, "HIDREAM_API_KEY is not set"), ({"HIDREAM_MCP_URL": "x"}, "is 'x'")]
)
def test_what_is_missing_is_said_in_one_line(capsys, monkeypatch, environ, said):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HIDREAM_API_KEY", raising=False)
    assert cli.main(["mcp"]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_the_extra_it_says_so(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "hidream.mcp_server", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    assert cli.main(["mcp"]) == 1
    assert "pip install 'hidream[mcp]'" in capsys.readouterr().err
