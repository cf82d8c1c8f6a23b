"""OpenAI's clients for Python and JavaScript, whose base URL is an argument of theirs."""

import re

import pytest
from driven import Raised
from PIL import Image, ImageChops
from received_images import is_image, look
from service import MODEL, PROMPT, until

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
    said = {"background": "auto", "moderation": "auto", "quality": "hd", "style": "vivid", "user": "somebody"}
    (image,) = client("generate", **at(service), **SMALL | said)
    assert is_image(image["url"], kind="PNG")


def test_what_only_our_models_have_is_said_beside(python, service):
    said = {"output_format": "webp", "extra_body": {"seed": 7, "steps": 4, "negative_prompt": ""}}
    first, again = (python("generate", **at(service), **SMALL | said | {"response_format": "b64_json"}) for _ in "12")
    assert is_image(first[0]["b64_json"], kind="WEBP")
    assert first == again


def test_an_answer_says_what_the_image_is(client, service):
    answer = client("answer_of", **at(service), **SMALL, n=2, quality="low", output_format="webp")
    assert (answer["background"], answer["output_format"]) == ("opaque", "webp")
    assert (answer["quality"], answer["size"]) == ("low", "256x256")
    assert answer["usage"]["total_tokens"] == answer["usage"]["output_tokens_details"]["image_tokens"] == 2 * 16 * 16


@pytest.mark.parametrize("listed", [False, True])
def test_an_edit_of_a_file_with_a_mask(client, service, photo, tmp_path, listed):
    mask = Image.new("RGBA", (256, 256), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 128, 256))
    mask.save(tmp_path / "mask.png")
    image = [str(photo)] if listed else str(photo)
    said = {"model": MODEL, "prompt": PROMPT, "mask": str(tmp_path / "mask.png"), "response_format": "b64_json"}
    answer = client("edit", **at(service), image=image, **said)
    assert answer["size"] == "256x256"  # the photo's
    drawn, before = look(answer["data"][0]["b64_json"]).convert("RGB"), Image.open(photo)
    kept, changed = (
        ImageChops.difference(drawn.crop(box), before.crop(box)).getextrema()
        for box in ((136, 0, 256, 256), (0, 0, 120, 256))
    )
    assert max(high for _, high in kept) == 0  # what is opaque in OpenAI's masks stays
    assert max(high for _, high in changed) > 30


def test_two_images_are_refused_by_name(client, service, photo):
    with pytest.raises(Raised, match=r"400 .*image is a second file") as raised:
        client("edit", **at(service), model=MODEL, prompt=PROMPT, image=[str(photo)] * 2)
    assert "BadRequestError" in raised.value.kinds


@pytest.mark.parametrize("name", ["image_generation", "image_edit"])
def test_a_stream_has_partial_images_and_the_image(client, service, photo, name):
    said = {"model": MODEL, "prompt": PROMPT, "size": "1024x1024", "partial_images": 2}
    more = {"steps": 150}  # so many that there is time for a preview on any machine
    said |= more if client.name.startswith("npm") else {"extra_body": more}
    image = {} if name == "image_generation" else {"image": str(photo)}
    *partial, last = client("stream", **at(service), **said, **image)
    assert last["type"] == f"{name}.completed"
    assert is_image(last["b64_json"], size=(1024, 1024), kind="PNG")
    assert last["usage"]["output_tokens"] == 64 * 64
    assert 1 <= len(partial) <= 2
    for i, event in enumerate(partial):
        assert (event["type"], event["partial_image_index"]) == (f"{name}.partial_image", i)
        assert (event["output_format"], look(event["b64_json"]).format) == ("jpeg", "JPEG")


def test_an_error_within_a_stream_is_raised(client, service, photo):
    said = {"model": MODEL, "prompt": PROMPT, "extra_body": {"loras": [{"name": "nothing"}]}}
    if client.name == "npm-openai":
        said |= said.pop("extra_body")
    with pytest.raises(Raised, match="nothing") as raised:
        client("stream", **at(service), **said)
    assert "APIError" in raised.value.kinds


def test_a_stream_that_is_left_is_cancelled(client, idle):
    before = len(tasks(idle))
    client("leave", **at(idle), model=MODEL, prompt=PROMPT)
    until(lambda: [task["status"] for task in tasks(idle)[: len(tasks(idle)) - before]] == ["cancelled"])


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
