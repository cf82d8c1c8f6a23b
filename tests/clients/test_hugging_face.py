"""Hugging Face's clients, by their provider "wavespeed".

Neither may be given a provider's URL as such: see docs/CLIENTS.md for what is done instead. Both know a model by its
name on the Hub, and ask there by which name the provider has it; tests reach no Hub, and say it themselves.
"""

from threading import Thread

import pytest
from driven import Raised
from PIL import Image
from received_images import is_image
from service import MODEL, PROMPT, until

pytestmark = pytest.mark.timeout(900)  # the first test of a client may have to install it

LONG = pytest.mark.long


@pytest.fixture
def python(drive):
    return drive("pypi-huggingface-hub")


@pytest.fixture
def node(drive):
    return drive("npm-huggingface-inference")


def at(place, key=None, model=MODEL):
    return {"url": place.url, "key": key or place.key, "model": model, "prompt": PROMPT}


def test_python_gets_an_image(python, service):
    seen = python("text_to_image", **at(service), width=256, height=320, seed=7, num_inference_steps=4)
    assert (seen["size"], seen["format"]) == ([256, 320], "JPEG")
    assert seen["colours"] > 100


def test_python_says_all_that_it_can_say(python, service):
    said = {"width": 256, "height": 256, "negative_prompt": "fog", "guidance_scale": 7.5, "num_inference_steps": 4}
    seen = python("text_to_image", **at(service), **said, scheduler="euler")
    assert seen["size"] == [256, 256]


def test_python_changes_an_image(python, service, tmp_path):
    path = tmp_path / "photo.png"
    Image.radial_gradient("L").convert("RGB").resize((640, 360)).save(path)
    said = at(service) | {"path": str(path), "num_inference_steps": 4}
    seen = python("image_to_image", **said, target_size={"width": 256, "height": 320})
    assert (seen["format"], seen["size"]) == ("JPEG", [256, 320])
    assert python("image_to_image", **said)["size"] == [640, 360]


WRONG = [
    ({"key": "wrong"}, "401 Unauthorized"),
    ({"model": "wavespeed-ai/hidream-i1-large"}, "404 Not Found"),
    ({"key": "limited"}, "429 Too Many Requests"),
    ({"width": 7, "height": 7}, "400 Bad Request|Bad request"),
]


@pytest.mark.parametrize(("said", "text"), WRONG)
def test_what_python_is_told(python, service, limited, said, text):
    said = at(service) | said
    with pytest.raises(Raised, match=text) as raised:
        python("text_to_image", **said | ({"key": limited} if said["key"] == "limited" else {}))
    assert "HfHubHTTPError" in raised.value.kinds


def test_what_python_is_told_of_a_failed_task(python, service):
    with pytest.raises(Raised, match=r"ValueError: WaveSpeed AI task failed: .*minors"):
        python("text_to_image", **at(service) | {"prompt": "a naked child"})


def test_what_python_is_told_when_its_own_task_was_cancelled_by_others(python, idle):
    known = waiting(idle)

    def cancel():
        for task in until(lambda: waiting(idle) - known):
            idle.http.delete(f"/api/v3/predictions/{task}").raise_for_status()

    other = Thread(target=cancel)
    other.start()
    with pytest.raises(Raised, match=r"ValueError: Unknown status: cancelled"):
        python("text_to_image", **at(idle))
    other.join()


def waiting(place):
    answer = place.http.post("/api/v3/predictions", json={"status": "created", "page_size": 100})
    return {item["id"] for item in answer.raise_for_status().json()["data"]["items"]}


@LONG
def test_node_gets_an_image(node, service):
    parameters = {"width": 256, "height": 320, "seed": 7, "num_inference_steps": 4}
    assert is_image(node("text_to_image", **at(service), parameters=parameters), (256, 320))


@LONG
def test_node_gets_a_url(node, service):
    url = node("text_to_image", **at(service), parameters={"width": 256, "height": 256}, outputType="url")
    assert url.startswith(service.url)
    assert is_image(url)


@LONG
@pytest.mark.parametrize(("said", "status"), [(said, text[:3]) for said, text in WRONG[:3]])
def test_what_node_is_told(node, service, limited, said, status):
    said = at(service) | said
    with pytest.raises(Raised) as raised:
        node("text_to_image", **said | ({"key": limited} if said["key"] == "limited" else {}))
    assert "InferenceClientProviderApiError" in raised.value.kinds


@LONG
def test_what_node_is_told_of_a_failed_task(node, service):
    with pytest.raises(Raised, match="minors") as raised:
        node("text_to_image", **at(service) | {"prompt": "a naked child"})
    assert "InferenceClientProviderOutputError" in raised.value.kinds


@LONG
def test_node_gives_up_when_it_is_told_to(node, idle):
    with pytest.raises(Raised) as raised:
        node("text_to_image", **at(idle), abort_ms=700)
    assert raised.value.kinds[0] == "TimeoutError"
