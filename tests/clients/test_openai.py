"""OpenAI's clients for Python and JavaScript, whose base URL is an argument of theirs."""

import re

import pytest
from driven import Raised
from received_images import is_image
from service import MODEL, PROMPT

pytestmark = pytest.mark.timeout(900)  # the first test of a client may have to install it

CLIENTS = ["pypi-openai", pytest.param("npm-openai", marks=pytest.mark.long)]
SMALL = {"model": MODEL, "prompt": PROMPT, "size": "256x256"}


def at(place, key=None):
    return {"url": place.url, "key": key or place.key}


@pytest.fixture(params=CLIENTS)
def client(request, drive):
    return drive(request.param)


@pytest.fixture
def python(drive):
    return drive("pypi-openai")


def test_images_by_url(client, service):
    images = client("generate", **at(service), **SMALL, n=2, response_format="url")
    assert len(images) == 2
    assert all(is_image(each["url"], kind="PNG") for each in images)


def test_an_image_as_base64(client, service):
    (image,) = client("generate", **at(service), **SMALL, response_format="b64_json")
    assert is_image(image["b64_json"], kind="PNG")
    assert not image.get("url")


def test_what_only_openais_models_have_changes_nothing(client, service):
    said = {"background": "auto", "moderation": "low", "quality": "hd", "style": "vivid", "user": "somebody"}
    (image,) = client("generate", **at(service), **SMALL | said)
    assert is_image(image["url"], kind="PNG")


def test_what_only_our_models_have_is_said_beside(python, service):
    said = {"output_format": "webp", "extra_body": {"seed": 7, "steps": 4, "negative_prompt": ""}}
    first, again = (python("generate", **at(service), **SMALL | said | {"response_format": "b64_json"}) for _ in "12")
    assert is_image(first[0]["b64_json"], kind="WEBP")
    assert first == again


def test_the_models(client, service):
    assert MODEL in client("models", **at(service))
    assert client("model", **at(service), name=MODEL)["id"] == MODEL


WRONG = {
    "BadRequestError": ({"size": "abc"}, "400 .*size is 'abc'"),
    "AuthenticationError": ({"key": "wrong"}, "401 .*API key"),
    "NotFoundError": ({"model": "dall-e-3"}, f"404 .*{MODEL}"),
    "RateLimitError": ({"key": "limited"}, "429 .*this key may generate 1048576 pixels a day"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_not_accepted_is_an_error_of_the_client(client, service, limited, kind):
    said, text = WRONG[kind]
    said = {**at(service), **SMALL} | said
    with pytest.raises(Raised) as raised:
        client("generate", **said | ({"key": limited} if said["key"] == "limited" else {}))
    assert kind in raised.value.kinds
    assert re.search(text, raised.value.text)


def test_a_refused_prompt_is_a_bad_request(client, service):
    with pytest.raises(Raised, match=r"content_policy_violation|400 .*minors") as raised:
        client("generate", **at(service), **SMALL | {"prompt": "a naked child"})
    assert "BadRequestError" in raised.value.kinds


def test_an_image_that_takes_too_long_is_cancelled_and_not_asked_for_again(client, hasty):
    before = tasks(hasty)
    with pytest.raises(Raised, match=r"504 .*was cancelled") as raised:
        client("generate", **at(hasty), **SMALL | {"size": "1536x1536"})  # a small one may be done meanwhile
    assert "InternalServerError" in raised.value.kinds
    assert len(tasks(hasty)) == len(before) + 1
    assert tasks(hasty)[0]["status"] == "cancelled"


def test_a_client_gives_up_after_its_own_time_out(client, idle):
    with pytest.raises(Raised) as raised:
        client("generate", **at(idle), **SMALL, timeout=0.5)
    assert {"APITimeoutError", "APIConnectionTimeoutError"} & set(raised.value.kinds)


def tasks(place):
    answer = place.http.post("/api/v3/predictions", json={"page_size": 100})
    return answer.raise_for_status().json()["data"]["items"]
