"""WaveSpeed's own clients, unmodified, pointed at this server by their documented argument."""

import base64
import io
import os
import subprocess
import sys

import httpx
import pytest
import wavespeed
from PIL import Image
from service import MODEL, PROMPT

REFUSED = "a naked child"


@pytest.fixture
def client(service):
    return wavespeed.Client(api_key=service.key, base_url=service.url)


@pytest.mark.parametrize("sync", [False, True])
def test_the_official_client_gets_its_picture(client, sync):
    outputs = client.run(
        MODEL, {"prompt": PROMPT, "size": "512*512", "seed": 7}, poll_interval=0.05, enable_sync_mode=sync
    )["outputs"]
    assert len(outputs) == 1
    assert Image.open(io.BytesIO(httpx.get(outputs[0]).content)).size == (512, 512)


def test_the_official_client_gets_base64_if_it_asks_for_it(client):
    asked = {"prompt": PROMPT, "size": "512*512", "enable_base64_output": True}
    (output,) = client.run(MODEL, asked, enable_sync_mode=True)["outputs"]
    assert Image.open(io.BytesIO(base64.b64decode(output, validate=True))).format == "JPEG"


def test_a_wrong_key_is_an_error_of_the_official_client(service):
    client = wavespeed.Client(api_key="wrong", base_url=service.url)
    with pytest.raises(RuntimeError, match="HTTP 401"):
        client.run(MODEL, {"prompt": PROMPT})


def test_bad_input_is_an_error_of_the_official_client_that_says_what_is_wrong(client):
    with pytest.raises(RuntimeError, match=r"HTTP 400.*size is 'abc'"):
        client.run(MODEL, {"prompt": PROMPT, "size": "abc"})


@pytest.mark.parametrize("sync", [False, True])
def test_a_failed_task_is_an_error_of_the_official_client(client, sync):
    with pytest.raises(RuntimeError, match=r"Prediction failed .*minors"):
        client.run(MODEL, {"prompt": REFUSED}, enable_sync_mode=sync)
    told = client.run_no_throw(MODEL, {"prompt": REFUSED}, enable_sync_mode=sync)
    assert (told["status"], told["outputs"]) == ("failed", None)
    assert client.get_result(told["task_id"])["data"]["code"] == 1200


OLD_CLIENT = """
import sys
from wavespeed import WaveSpeed
base_url, prompt = sys.argv[1:]
client = WaveSpeed(base_url=base_url)
prediction = client.run("wavespeed-ai/hidream-i1-dev", {"prompt": prompt, "size": "512*512", "seed": 7})
assert client.get_prediction(prediction.id).status == prediction.status
print(prediction.status, prediction.has_nsfw_contents, prediction.executionTime >= 0, sep="|")
print(*(prediction.outputs or [prediction.error]))
"""


def run_old_client(service, folder, prompt):
    environ = os.environ | {
        "PYTHONPATH": str(folder),
        "WAVESPEED_API_KEY": service.key,
        "WAVESPEED_POLL_INTERVAL": "0.05",
    }
    command = [sys.executable, "-c", OLD_CLIENT, f"{service.url}/api/v2/", prompt]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-2:]


def test_the_old_client_gets_its_picture(service, wavespeed_005):
    first, output = run_old_client(service, wavespeed_005, PROMPT)
    assert first == "completed|[False]|True"
    image = Image.open(io.BytesIO(base64.b64decode(output, validate=True)))
    assert (image.format, image.size) == ("PNG", (512, 512))


def test_the_old_client_is_told_that_a_task_failed(service, wavespeed_005):
    first, error = run_old_client(service, wavespeed_005, REFUSED)
    assert first == "failed|[]|True"
    assert "minors" in error
