"""LangChain's and LlamaIndex's tools for WaveSpeed, which are given the SDK's client."""

import re

import pytest
from driven import Raised
from received_images import is_image, look
from service import MODEL, PROMPT

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]  # the first test of a client may have to install it

CHAIN, INDEX = "pypi-langchain-wavespeed", "pypi-llama-index-tools-wavespeed"
BODY = {"prompt": PROMPT, "size": "256*256", "seed": 7}
TIMEOUT_S = 3.0
"""Of a tool that is to give up waiting: it gives each of its requests no longer, and their answers are to come."""


def at(place, key=None, model=MODEL):
    return {"url": place.url, "key": key or place.key, "model": model}


@pytest.fixture(params=[CHAIN, INDEX])
def client(request, drive):
    return drive(request.param)


def told(client, do, **said):
    """What the agent reads: LangChain's tools raise it, LlamaIndex's give it as their answer."""
    try:
        text = client(do, **said)
    except Raised as error:
        text = str(error)
    assert text.startswith(("ToolException: ", "Error: "))
    return text


def test_an_image_of_any_parameters(client, service):
    assert is_image(client("run", **at(service), body=BODY))


def test_an_image_of_the_tools_own_parameters(client, service):
    url = client("generate", **at(service), prompt=PROMPT, aspect_ratio="16:9", resolution="1k")
    width, height = look(url).size
    assert width / height == pytest.approx(16 / 9, abs=0.03)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"key": "wrong"}, "HTTP 401"),
        ({"model": "wavespeed-ai/hidream-i1-large"}, f"HTTP 404.*{MODEL}"),
        ({"key": "limited"}, "HTTP 429.*pixels a day"),
        ({"body": BODY | {"prompt": "a naked child"}}, "Prediction failed.*minors"),
    ],
)
def test_what_the_agent_is_told(client, service, limited, said, text):
    said = at(service) | {"body": BODY} | said
    assert re.search(text, told(client, "run", **said | ({"key": limited} if said["key"] == "limited" else {})))


def test_an_image_that_takes_too_long_has_an_id(client, idle):
    text = told(client, "generate", **at(idle), prompt=PROMPT, timeout=TIMEOUT_S)
    assert re.search(rf"Prediction timed out after {TIMEOUT_S} seconds \(task_id: [0-9a-f]{{32}}\)", text)


def test_llama_index_looks_up_what_it_has_given_up(drive, service, idle):
    client = drive(INDEX)
    task = re.search("[0-9a-f]{32}", told(client, "generate", **at(idle), prompt=PROMPT, timeout=TIMEOUT_S))[0]
    assert "created" in client("look_up", url=idle.url, key=idle.key, task=task)
    done, _ = service.draw(size="256*256")
    assert client("look_up", url=service.url, key=service.key, task=done["id"]) == done["outputs"][0]
