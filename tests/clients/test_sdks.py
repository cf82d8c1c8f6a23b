"""WaveSpeed's own SDKs for Python and JavaScript, three and two generations of them.

npm has 0.0.15, 0.2.3 and 0.3.2 of `wavespeed`; 0.2.3 was only read: as 0.3.2, but for uploads, which are 0.0.15's.
PyPI's 0.0.1 is a wheel that cannot be imported.
"""

import re
from dataclasses import dataclass, field

import pytest
from driven import Raised
from received_images import is_image, look
from service import MODEL, PROMPT

pytestmark = pytest.mark.timeout(900)  # the first test of a client may have to install it

NEW_PYTHON, PYTHON, OLD_PYTHON = "pypi-wavespeed-2.0.5", "pypi-wavespeed-1.0.3", "pypi-wavespeed-0.0.5"
NODE, OLD_NODE = "npm-wavespeed-0.3.2", "npm-wavespeed-0.0.15"
SMALL = {"prompt": PROMPT, "size": "512*512", "seed": 7, "enable_base64_output": False, "output_format": "jpeg"}
SMALL |= {"num_inference_steps": 4}
REFUSED = "a naked child"
LONG = pytest.mark.long
REAL_ID = re.compile("[0-9a-f]{32}")
TIMEOUT_S = 3
"""Of a client that is to give up waiting: it gives each of its requests no longer, and their answers are to come."""
LARGE = SMALL | {"size": "1024*1024", "num_inference_steps": 28}
"""What is not done before an answer that waits for nothing."""


def clients(*without):
    """All clients but some; two of them in `make test`."""
    every = (NEW_PYTHON, NODE, PYTHON, OLD_PYTHON, OLD_NODE)
    return [
        pytest.param(name, marks=[] if name in (NEW_PYTHON, NODE) else LONG) for name in every if name not in without
    ]


def at(place, key=None):
    return {"url": place.url, "key": key or place.key, "model": MODEL}


def outputs(answer):
    """The new clients give the outputs, the old ones the whole prediction."""
    return answer if isinstance(answer, list) else answer["outputs"]


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("client", clients())
def test_an_image(drive, service, client, sync):
    (url,) = outputs(drive(client)("run", **at(service), body=SMALL, sync=sync))
    assert url.startswith(f"{service.url}/outputs/")
    assert is_image(url, (512, 512))


@pytest.mark.parametrize("client", clients())
def test_base64(drive, service, client):
    (text,) = outputs(drive(client)("run", **at(service), body=SMALL | {"enable_base64_output": True}, sync=True))
    assert is_image(text, (512, 512))


@pytest.mark.parametrize("client", clients(OLD_PYTHON))
def test_several_images_in_another_format(drive, service, client):
    body = SMALL | {"size": "256x320", "num_images": 2, "num_inference_steps": 4, "output_format": "webp"}
    found = outputs(drive(client)("run", **at(service), body=body))
    assert len(found) == 2
    assert all(is_image(url, (256, 320), "WEBP") for url in found)


@pytest.mark.parametrize("client", clients(OLD_PYTHON))
def test_an_upload_is_an_image_to_start_from(drive, service, client, photo):
    to = {"url": service.url, "key": service.key}
    image = drive(client)("upload", **to, path=str(photo))
    assert is_image(image, kind="PNG")
    body = {"prompt": PROMPT, "size": "256*256", "seed": 7, "num_inference_steps": 4, "strength": 0.5}
    (changed,) = outputs(drive(client)("run", **to, model=MODEL, body=body | {"image": image}))
    (without,) = outputs(drive(client)("run", **to, model=MODEL, body=body))
    assert is_image(changed)
    assert look(changed).tobytes() != look(without).tobytes()


@dataclass(frozen=True)
class Wrong:
    """A request that is not accepted, and what of the answer its user has to be told."""

    status: int
    message: str
    model: str = MODEL
    key: str = ""
    body: dict = field(default_factory=lambda: SMALL)


WRONG = (
    Wrong(400, r"size is 'abc'; accepted: ", body=SMALL | {"size": "abc"}),
    Wrong(401, "API key", key="wrong"),
    Wrong(404, MODEL, model="wavespeed-ai/hidream-i1-large"),
    Wrong(429, "this key may generate 1048576 pixels a day", key="limited"),
)
TOLD = {
    NEW_PYTHON: ("RuntimeError", "Failed to submit prediction: HTTP {status}: .*{message}"),
    PYTHON: ("RuntimeError", "Failed to submit prediction: HTTP {status}: .*{message}"),
    OLD_PYTHON: ("HTTPStatusError", "Client error '{status} "),  # no word of ours
    NODE: ("WavespeedSubmissionException", "Prediction submission failed: HTTP {status}: .*{message}"),
    OLD_NODE: ("Error", "Failed to create prediction: {status} .*{message}"),  # a 429 after three more attempts
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong.status))
@pytest.mark.parametrize("client", clients())
def test_what_is_not_accepted_is_an_error_that_says_why(drive, service, limited, client, wrong):
    key = limited if wrong.key == "limited" else wrong.key
    with pytest.raises(Raised) as raised:
        drive(client)("run", **at(service, key) | {"model": wrong.model}, body=wrong.body)
    kind, text = TOLD[client]
    assert kind in raised.value.kinds
    assert re.search(text.format(status=wrong.status, message=wrong.message), raised.value.text)


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("client", clients(PYTHON, OLD_PYTHON, OLD_NODE))
def test_a_failed_task_is_an_error(drive, service, client, sync):
    with pytest.raises(Raised, match=r"Prediction failed.*: .*minors") as raised:
        drive(client)("run", **at(service), body=SMALL | {"prompt": REFUSED}, sync=sync)
    assert {"RuntimeError", "Error"} & set(raised.value.kinds)


@pytest.mark.long
def test_the_first_stable_client_says_nothing_in_sync_mode_when_a_task_has_failed_or_is_not_done(drive, service, hasty):
    with pytest.raises(Raised, match=r"RuntimeError: Prediction failed: .*minors"):
        drive(PYTHON)("run", **at(service), body=SMALL | {"prompt": REFUSED})
    assert drive(PYTHON)("run", **at(service), body=SMALL | {"prompt": REFUSED}, sync=True) == []
    assert drive(PYTHON)("run", **at(hasty), body=LARGE, sync=True) == []


@pytest.mark.long
@pytest.mark.parametrize("client", [OLD_PYTHON, OLD_NODE])
def test_a_failed_task_is_a_prediction_of_the_old_clients(drive, service, client):
    failed = drive(client)("run", **at(service), body=SMALL | {"prompt": REFUSED})
    assert (failed["status"], failed["outputs"]) == ("failed", [])
    assert "minors" in failed["error"]
    again = drive(client)("look_up", url=service.url, key=service.key, task=failed["id"])
    assert (again["status"], again["error"]) == ("failed", failed["error"])


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("client", clients(PYTHON, OLD_PYTHON, OLD_NODE))
def test_without_throwing_the_same_is_told_as_an_answer(drive, service, client, sync):
    done = drive(client)("run_no_throw", **at(service), body=SMALL, sync=sync)
    assert is_image(done["outputs"][0], (512, 512))
    assert (done["status"], done["error"]) == ("completed", None)
    told = drive(client)("run_no_throw", **at(service), body=SMALL | {"prompt": REFUSED}, sync=sync)
    assert (told["status"], told["outputs"]) == ("failed", None)
    assert "minors" in told["error"]
    assert REAL_ID.fullmatch(told["task_id"])


SYNC_TOLD = {
    NEW_PYTHON: (r"Sync mode timed out \(task_id: \w{32}\): .* still processing asynchronously", "RuntimeError"),
    NODE: (r"Sync mode timed out \(task_id: \w{32}\): .* later at: http\S+/result", "WavespeedSyncTimeoutException"),
}


@pytest.mark.parametrize("client", clients(PYTHON, OLD_PYTHON, OLD_NODE))
def test_sync_mode_that_takes_too_long_leaves_a_task_that_goes_on(drive, service, hasty, client):
    text, kind = SYNC_TOLD[client]
    with pytest.raises(Raised, match=text) as raised:
        drive(client)("run", **at(hasty), body=LARGE, sync=True)
    assert kind in raised.value.kinds
    task = REAL_ID.search(raised.value.text)[0]
    assert is_image(service.result({"urls": {"get": f"/api/v3/predictions/{task}"}})["outputs"][0], (1024, 1024))


@pytest.mark.long
@pytest.mark.parametrize("client", [OLD_PYTHON, OLD_NODE])
def test_the_old_clients_go_on_asking_when_sync_mode_takes_too_long(drive, hasty, client):
    done = drive(client)("run", **at(hasty), body=SMALL, sync=True)
    assert is_image(done["outputs"][0], (512, 512))


@pytest.mark.parametrize("client", clients(OLD_PYTHON, OLD_NODE))
def test_a_client_gives_up_after_its_own_time_out(drive, idle, client):
    with pytest.raises(Raised, match=f"Prediction timed out after {TIMEOUT_S} seconds") as raised:
        drive(client)("run", **at(idle), body=SMALL, timeout=TIMEOUT_S)
    assert {"TimeoutError", "Error"} & set(raised.value.kinds)


@pytest.mark.long
def test_the_old_client_for_python_has_a_time_out_for_each_request_only(drive, idle):
    with pytest.raises(Raised) as raised:
        drive(OLD_PYTHON)("run", **at(idle), body=SMALL, sync=True, timeout=0.5)
    assert raised.value.kinds[0] == "ReadTimeout"


@pytest.mark.long
@pytest.mark.parametrize(("headers", "tasks"), [({}, 2), ({"Idempotency-Key": "apple-1"}, 1)])
def test_the_old_client_for_node_repeats_its_request_which_a_header_makes_harmless(drive, idle, headers, tasks):
    def total():
        return idle.http.post("/api/v3/predictions", json={}).json()["data"]["total"]

    before = total()
    with pytest.raises(Raised) as raised:
        options = {"headers": headers, "maxRetries": 1}
        drive(OLD_NODE)("run", **at(idle), body=SMALL, sync=True, timeout=TIMEOUT_S, options=options)
    assert raised.value.kinds[0] == "AbortError"
    assert total() - before == tasks


def test_the_module_of_the_new_client_for_python_can_be_pointed_too(drive, service):
    (url,) = drive(NEW_PYTHON)("run_by_module", **at(service), body=SMALL)
    assert is_image(url, (512, 512))


def test_a_task_is_looked_up_by_the_new_client_for_python(drive, idle):
    with pytest.raises(Raised) as raised:
        drive(NEW_PYTHON)("run", **at(idle), body=SMALL, timeout=TIMEOUT_S)
    task = REAL_ID.search(raised.value.text)[0]
    waiting = drive(NEW_PYTHON)("look_up", url=idle.url, key=idle.key, task=task)
    assert waiting["status"] == "created"
    idle.http.delete(f"/api/v3/predictions/{task}").raise_for_status()
    assert drive(NEW_PYTHON)("look_up", url=idle.url, key=idle.key, task=task)["status"] == "cancelled"


@pytest.mark.long
def test_the_old_client_for_python_waits_without_blocking_and_speaks_v2_and_v3(drive, service):
    done = drive(OLD_PYTHON)("run_async", **at(service), body=SMALL)
    assert "/api/v2/" in done["urls"]["get"]
    assert is_image(done["outputs"][0], (512, 512))
    assert "/api/v3/" in drive(OLD_PYTHON)("run", **at(service), body=SMALL, api="v3")["urls"]["get"]


@pytest.mark.long
@pytest.mark.parametrize("client", [OLD_PYTHON, OLD_NODE])
def test_v2_answers_with_base64_and_png_when_nothing_else_is_said(drive, service, client):
    (text,) = drive(client)("run", **at(service), api="v2", body={"prompt": PROMPT, "size": "512*512"})["outputs"]
    assert is_image(text, (512, 512), "PNG")
