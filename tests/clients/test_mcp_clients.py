"""WaveSpeed's servers of the Model Context Protocol, npm @wavespeed/mcp 1.0.7 and PyPI wavespeed-mcp 0.1.27.

They are driven over stdio by the protocol's own client. @wavespeed/mcp declares `wavespeed ^0.2.6`, which npm does not
have: it is overridden by 0.3.2. wavespeed-mcp pins requests and httpx, and takes mcp from 1.6 on: 1.12.4 is the newest
that its fastapi 0.109.2 can be installed beside, and needs pydantic below 2.12.
"""

import re
from pathlib import Path

import pytest
from driven import surroundings
from environments import environment, node
from mcp import StdioServerParameters
from model_context import called, said
from received_images import is_image
from service import MODEL, PROMPT

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]  # the first test of a client may have to install it

SMALL = {"prompt": PROMPT, "size": "256*256", "seed": 7}


def npm_server(home, url, key):
    program = environment("npm-wavespeed-mcp") / "node_modules" / "@wavespeed" / "mcp" / "dist" / "index.js"
    environ = surroundings(home) | {"WAVESPEED_BASE_URL": url, "WAVESPEED_API_KEY": key}
    return StdioServerParameters(command=node(), args=[str(program)], env=environ, cwd=home)


def pypi_server(home, url, key, **environ):
    environ = surroundings(home) | {"WAVESPEED_API_HOST": url, "WAVESPEED_API_KEY": key} | environ
    environ |= {
        "WAVESPEED_API_TEXT_TO_IMAGE_ENDPOINT": f"/{MODEL}",
        "WAVESPEED_API_IMAGE_TO_IMAGE_ENDPOINT": f"/{MODEL}",
    }
    program = environment("pypi-wavespeed-mcp") / "bin" / "wavespeed-mcp"
    return StdioServerParameters(command=str(program), args=[], env=environ, cwd=home)


@pytest.fixture
def npm(tmp_path, service):
    return npm_server(tmp_path, service.url, service.key)


def test_npm_draws_an_image(npm):
    done = said(npm, "run_model", model=MODEL, input=SMALL)
    assert done["status"] == "completed"
    assert is_image(done["outputs"][0])
    assert said(npm, "get_prediction", id=done["id"])["outputs"] == done["outputs"]


def test_npm_knows_the_models_and_what_they_take(npm):
    found = said(npm, "list_models", query="hidream", type="text-to-image")
    assert MODEL in [model["model_id"] for model in found["models"]]
    schema = said(npm, "get_model_schema", model=MODEL)
    assert schema["required"] == ["prompt"]
    assert {"size", "seed", "image"} <= set(schema["properties"])
    assert set(schema["property_order"]) <= set(schema["properties"])


def test_npm_knows_price_and_balance(npm):
    assert said(npm, "get_balance") == {"balance": 1000}
    assert said(npm, "get_price", model=MODEL, input=SMALL)["price"] == 0


def test_npm_uploads_an_image_to_start_from(npm, photo):
    url = said(npm, "upload_file", path=str(photo))["url"]
    assert is_image(url, kind="PNG")
    done = said(npm, "run_model", model=MODEL, input=SMALL | {"image": f"@{photo}", "num_inference_steps": 4})
    assert is_image(done["outputs"][0])
    assert done["uploaded_files"]


def test_npm_submits_only_and_gives_up_waiting(tmp_path, idle):
    server = npm_server(tmp_path, idle.url, idle.key)
    task = said(server, "run_model", model=MODEL, input=SMALL, wait_seconds=0)
    assert task["status"] == "created"
    assert said(server, "get_prediction", id=task["id"])["status"] == "created"
    text, error = called(server, "run_model", model=MODEL, input=SMALL, wait_seconds=1)
    assert error
    assert "Still created after the wait limit" in text


def test_what_npm_tells(npm, tmp_path, service, limited):
    for server, asked, text in (
        (npm_server(tmp_path, service.url, "wrong"), {"model": MODEL, "input": SMALL}, "API key"),
        (npm, {"model": "wavespeed-ai/hidream-i1-large", "input": SMALL}, MODEL),
        (npm_server(tmp_path, service.url, limited), {"model": MODEL, "input": SMALL}, "pixels a day"),
        (npm, {"model": MODEL, "input": SMALL | {"size": "abc"}}, "size is 'abc'"),
        (npm, {"model": MODEL, "input": SMALL | {"prompt": "a naked child"}}, "Prediction failed: .*minors"),
    ):
        told, error = called(server, "run_model", **asked)
        assert error
        assert re.search(text, told)


@pytest.fixture
def pypi(tmp_path, service):
    return pypi_server(tmp_path, service.url, service.key)


def test_pypi_draws_an_image(pypi):
    done = said(pypi, "text_to_image", **SMALL)
    assert (done["status"], done["model"]) == ("success", MODEL)
    assert is_image(done["urls"][0])


def test_pypi_draws_several(pypi):
    assert len(said(pypi, "text_to_image", **SMALL, num_images=2, num_inference_steps=4)["urls"]) == 2


def test_pypi_gives_base64_or_a_file(tmp_path, service):
    server = pypi_server(tmp_path, service.url, service.key, WAVESPEED_API_RESOURCE_MODE="base64")
    (image,) = said(server, "text_to_image", **SMALL)["base64"]
    assert image["mime_type"] == "image/jpeg"
    assert is_image(image["data"])
    server = pypi_server(tmp_path, service.url, service.key, WAVESPEED_API_RESOURCE_MODE="local")
    (file,) = said(server, "text_to_image", **SMALL, output_directory=str(tmp_path / "out"))["local_files"]
    assert is_image(Path(file["path"]))


def test_pypi_changes_an_image(pypi, photo):
    done = said(pypi, "image_to_image", image=str(photo), images=[], prompt=PROMPT)
    assert is_image(done["urls"][0])  # without a size, that of the image


def test_what_pypi_tells(pypi, tmp_path, service, limited):
    for server, asked, text in (
        (pypi_server(tmp_path, service.url, "wrong"), SMALL, "Authentication failed: 401"),
        (pypi, SMALL | {"model": "wavespeed-ai/hidream-i1-large"}, MODEL),
        (pypi_server(tmp_path, service.url, limited), SMALL, "pixels a day"),
        (pypi, SMALL | {"size": "abc"}, "size is 'abc'"),
        (pypi, SMALL | {"prompt": "a naked child"}, "API request failed: .*minors"),
    ):
        told = said(server, "text_to_image", **asked)
        assert told["status"] == "error"
        assert re.search(text, told["error"])


def test_pypi_gives_up_waiting(tmp_path, idle):
    server = pypi_server(tmp_path, idle.url, idle.key, WAVESPEED_WAIT_RESULT_TIMEOUT="1")
    assert "Polling timed out after 1.0 seconds" in said(server, "text_to_image", **SMALL)["error"]
