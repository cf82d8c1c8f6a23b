"""The requests that WaveSpeed's ComfyUI nodes make, one after the other.

The nodes themselves are on no registry, and need ComfyUI; their requests are those of `py/wavespeed_api/client.py` of
WaveSpeedAI/wavespeed-comfyui (at 1a771fa): submit to v3, ask v2 for the same task, upload to v2, `requests` underneath.
Sizes go in steps of 8, and a seed of ComfyUI, of up to 64 bits, is taken modulo 9999999999.
"""

import io
import time

import httpx
import pytest
from PIL import Image
from received_images import is_image
from service import MODEL, PROMPT


def body(**said):
    size, seed = "264*328", (2**64 - 1) % 9_999_999_999
    return {"prompt": PROMPT, "size": size, "seed": seed, "enable_base64_output": False} | said


def posted(place, **said):
    return place.http.post(f"/api/v3/{MODEL}", json=body(**said))


def waited(place, submitted):
    task = submitted.json()["data"]["id"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = place.http.get(f"/api/v2/predictions/{task}/result")
        assert (answer.status_code, answer.json()["code"]) == (200, 200)
        data = answer.json()["data"]
        if data["status"] in ("completed", "failed"):  # it knows of no other end
            return data
        assert data["status"] in ("created", "processing")
        time.sleep(0.1)
    pytest.fail("the task did not end")


def test_an_image(service):
    submitted = posted(service)
    assert submitted.json()["data"]["id"]
    done = waited(service, submitted)
    assert (done["status"], done["seed"]) == ("completed", body()["seed"])
    assert is_image(done["outputs"][0], (264, 328))


def test_an_upload_is_an_image_to_start_from(service):
    file = io.BytesIO()
    Image.radial_gradient("L").save(file, format="PNG")
    answer = service.http.post(
        "/api/v2/media/upload/binary", files={"file": ("image.png", file.getvalue(), "image/png")}
    )
    assert (answer.status_code, answer.json()["code"]) == (200, 200)
    done = waited(service, posted(service, image=answer.json()["data"]["download_url"], num_inference_steps=4))
    assert is_image(done["outputs"][0], (264, 328))


def test_a_failed_task(service):
    failed = waited(service, posted(service, prompt="a naked child"))
    assert failed["status"] == "failed"
    assert "minors" in failed["error"]


def test_what_it_would_show(service, limited):
    """It reads `error` of an answer that is not 200; of a 401 it reads nothing."""
    submit = f"{service.url}/api/v3/{MODEL}"
    assert httpx.post(submit, json=body(), headers={"Authorization": "Bearer wrong"}, timeout=60).status_code == 401
    few = httpx.post(submit, json=body(), headers={"Authorization": f"Bearer {limited}"}, timeout=60)
    assert (few.status_code, few.json()["error"].partition(",")[0]) == (
        429,
        "this key may generate 1048576 pixels a day",
    )
    assert posted(service, size="2056*1024").json()["error"].startswith("size is '2056*1024'")
    other = service.http.post("/api/v3/wavespeed-ai/hidream-i1-large", json=body())
    assert (other.status_code, MODEL in other.json()["error"]) == (404, True)


def test_a_task_that_waits_is_not_at_its_end(idle):
    task = posted(idle).json()["data"]["id"]
    assert idle.http.get(f"/api/v2/predictions/{task}/result").json()["data"]["status"] == "created"
