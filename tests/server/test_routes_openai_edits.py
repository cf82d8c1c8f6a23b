"""OpenAI's edits: an image and a mask in a form or in JSON, as clients send them."""

import asyncio
import base64
import json

import pytest

from hidream.types import Mode, Size
from image_files import noise, saved

PATH = "/v1/images/edits"


async def edit(api, files=(), headers=None, **fields):
    """Send a form, as the clients for Python do."""
    return await api.client.post(PATH, data=fields, files=list(files), headers=api.bearer | (headers or {}))


async def drawn(api, asking):
    """Let a worker draw what is asked for; the task and the answer."""
    answer = asyncio.create_task(asking)
    task = await api.draw(b"the image")
    return task, await asyncio.wait_for(answer, 10)


async def stored(api, name):
    return await api.service.uploads.read(name)


@pytest.mark.parametrize("field", ["image", "image[]"])
async def test_a_form_with_an_image_and_a_mask(api, make_image, field):
    image, mask = make_image(size=(320, 288)), make_image(size=(320, 288), compress_level=0)
    files = [(field, ("a.png", image, "image/png")), ("mask", ("b.png", mask, "image/png"))]
    task, answer = await drawn(api, edit(api, files, prompt="a hat", n="2"))
    body = answer.json()
    assert (answer.status_code, len(body["data"]), body["size"]) == (200, 2, "320x288")
    assert (task.input.size, task.input.strength, task.input.num_images) == (Size(320, 288), 0.8, 2)
    assert (await stored(api, task.input.image), await stored(api, task.input.mask)) == (image, mask)


async def test_every_type_of_parameter_in_a_form(api, make_image):
    said = {
        "prompt": "123",
        "size": "512x256",
        "seed": "7",
        "strength": "0.25",
        "enable_safety_checker": "False",
        "enable_base64_output": "true",
        "loras": '[{"name": "ink", "scale": 0.5}]',
        "quality": "medium",
        "output_format": "webp",
        "output_compression": "55",
        "stream": "false",
        "partial_images": "0",
        "user": "5",
        "negative_prompt": "",
    }
    task, answer = await drawn(api, edit(api, [("image", ("a.png", make_image(size=(300, 300))))], **said))
    asked = task.input
    assert (asked.prompt, asked.size, asked.seed, asked.strength) == ("123", Size(512, 256), 7, 0.25)
    assert (asked.enable_safety_checker, asked.mode, asked.output_quality) == (False, Mode.BALANCED, 55)
    assert [(lora.name, lora.weight) for lora in asked.loras] == [("ink", 0.5)]
    assert list(answer.json()["data"][0]) == ["b64_json"]
    assert "warnings" not in answer.json()


async def test_the_forms_of_json(api, make_image):
    data = make_image(size=(300, 320))
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for body in (
        {"image": uri},
        {"image": [uri]},
        {"images": [{"image_url": uri}], "mask": {"image_url": uri}},
        {"image": {"image_url": uri}, "mask": uri},
    ):
        task, answer = await drawn(api, api.post(PATH, prompt="a hat", **body))
        assert (answer.status_code, task.input.size) == (200, Size(300, 320))
        assert await stored(api, task.input.image) == data
        assert (task.input.mask is not None) == ("mask" in body)


async def test_a_long_image_in_json_goes_to_a_file(api):
    data = saved(noise(400, 400))
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert len(uri) > 131_072
    task, answer = await drawn(api, api.post(PATH, prompt="a hat", images=[{"image_url": uri}]))
    assert (answer.status_code, await stored(api, task.input.image)) == (200, data)


PNG = ("image", ("a.png", b"\x89PNG", "image/png"))


@pytest.mark.parametrize(
    ("files", "fields", "param", "message"),
    [
        ([], {"prompt": "a"}, "image", "image is absent"),
        ([PNG], {}, "prompt", "prompt is absent"),
        ([PNG], {"prompt": "a"}, None, "image is not an image that can be read (4 bytes)"),
        ([PNG, PNG], {"prompt": "a"}, "image", "image is a second file; accepted: one image to start from"),
        ([PNG, ("image[]", PNG[1])], {"prompt": "a"}, "image", "image is a second file"),
        ([("mask", PNG[1])], {"prompt": "a"}, "image", "image is absent"),
        ([("mask", PNG[1])] * 2, {"prompt": "a"}, "mask", "mask is a second file; accepted: one mask"),
        ([PNG, ("markup", PNG[1])], {"prompt": "a"}, "markup", "markup is a file; accepted: no markup"),
        ([PNG, ("photo", PNG[1])], {"prompt": "a"}, "photo", "photo is a file; accepted: a file in image, image[] or"),
        ([PNG], {"prompt": "a", "image": "https://x.example"}, "image", "image is given twice"),
        ([PNG], {"prompt": ["a", "b"]}, "prompt", "prompt is given twice"),
        ([PNG], {"prompt": "a", "n": "two"}, "n", "n is 'two'; accepted: a whole number from 1 to 4"),
        ([PNG], {"prompt": "a", "n": "5"}, "n", "n is 5"),
        ([PNG], {"prompt": "a", "seed": "NaN"}, "seed", "seed is 'NaN'"),
        ([PNG], {"prompt": "a", "svg[model]": "x"}, "svg", "svg is 'x'"),
        ([PNG], {"prompt": "a", "background": "transparent"}, "background", "background is 'transparent'"),
        ([PNG], {"prompt": "a", "input_fidelity": "high"}, "input_fidelity", "strength says how much"),
    ],
)
async def test_a_form_that_is_not_accepted(api, files, fields, param, message):
    answer = await edit(api, files or [("nothing", (None, b"x"))], **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert message in error["message"]
    if param:
        assert error["param"] == param
    assert await api.claim() is None


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("text/plain", b"x", "Content-Type is 'text/plain'; accepted: application/json"),
        ("multipart/form-data", b"x", "Content-Type is 'multipart/form-data'; accepted: multipart/form-data, or"),
        ("multipart/form-data; boundary=x", b"hello", "the form cannot be read"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhalf',
            "the form ends within the field 'prompt'",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--',
            "prompt is b'\\xff'; accepted: text in UTF-8",
        ),
    ],
)
async def test_what_is_no_form(api, content_type, body, message):
    answer = await api.raw(PATH, body, content_type)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (400, True), answer.text


async def test_limits_of_a_form(open_api, make_image):
    async with open_api(upload_max_bytes=2048) as api:
        large = ("image", ("a.png", make_image() + b"x" * 2048, "image/png"))
        answer = await edit(api, [large], prompt="a")
        assert (answer.status_code, answer.json()["error"]["message"][:5]) == (413, "image")
        answer = await edit(api, [("image", ("a.png", make_image()))], prompt="a" * 133_000)
        assert (answer.status_code, "beside its file" in answer.json()["error"]["message"]) == (413, True)
        assert not list(api.settings.home.rglob("*.png.*"))  # no part is left


async def test_what_a_refused_form_left_is_gone(api, make_image):
    answer = await edit(api, [("image", ("a.png", make_image()))], prompt="a naked child")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_policy_violation")
    assert [path for path in api.settings.home.rglob("*") if path.is_file() and "uploads" in path.parts] == []


async def test_an_idempotency_key_compares_files(api, make_image):
    key = {"Idempotency-Key": "once"}
    files = [("image", ("a.png", make_image()))]
    first, second = (asyncio.create_task(edit(api, files, key, prompt="a")) for _ in "12")
    await api.draw()
    answers = await asyncio.gather(first, second)
    assert answers[0].json() == answers[1].json()
    assert {answer.headers.get("Idempotent-Replayed") for answer in answers} == {None, "true"}
    other = await edit(api, [("image", ("a.png", make_image(size=(9, 9))))], key, prompt="a")
    assert other.status_code == 409
    generation = await api.client.post("/v1/images/generations", json={"prompt": "a"}, headers=api.bearer | key)
    assert generation.status_code == 409


async def test_a_key_that_may_not_submit(api, make_image):
    reader = await api.key("read")
    files = [("image", ("a.png", make_image()))]
    answer = await api.client.post(PATH, data={"prompt": "a"}, files=files, headers=reader)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_permissions")


async def test_what_open_webui_sends(open_api, make_image):
    """`backend/open_webui/routers/images.py` at 02530d5: `image_generations` and `image_edits`.

    Later versions send the same, with IMAGES_OPENAI_API_PARAMS as an operator sets them, and download a URL with the
    headers of the request.
    """
    async with open_api(model_aliases="gpt-image-1=hidream-i1-dev,dall-e-2=hidream-i1-dev") as api:
        generation = {"model": "dall-e-2", "prompt": "a hat", "n": 1, "size": "512x512", "response_format": "b64_json"}
        _, answer = await drawn(api, api.post("/v1/images/generations?api-version=2024-02-01", **generation))
        assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == b"the image"
        assert len(answer.json()["warnings"]) == 1  # about api-version, which only Azure has
        generation = {"model": "gpt-image-1", "prompt": "a hat", "n": 1, "size": "auto"}
        _, answer = await drawn(api, api.post("/v1/images/generations", **generation))
        assert list(answer.json()["data"][0]) == ["b64_json"]
        parameters = {"quality": "low", "steps": 8, "seed": 7, "output_format": "webp", "response_format": "url"}
        task, answer = await drawn(api, api.post("/v1/images/generations", **generation, **parameters))
        assert (task.input.mode, task.input.steps, task.input.seed) == (Mode.TURBO, 8, 7)
        assert "warnings" not in answer.json()
        forwarded = api.bearer | {"X-OpenWebUI-User-Name": "a user", "X-OpenWebUI-User-Role": "admin"}
        downloaded = await api.client.get(answer.json()["data"][0]["url"], headers=forwarded)
        assert (downloaded.status_code, downloaded.headers["content-type"]) == (200, "image/webp")
        file = ("image[]", ("0f7a1d0e.png", make_image(), "image/png"))
        task, answer = await drawn(api, edit(api, [file], model="gpt-image-1", prompt="a hat", background="auto"))
        assert (task.input.num_images, list(answer.json()["data"][0])) == (1, ["b64_json"])
        for field in ("image", "image[]"):  # one image as a text, or a list of images
            fields = {"model": "dall-e-2", "prompt": "a hat", "n": "1", "size": "512x512"}
            fields |= {"background": "auto", "response_format": "b64_json"}
            file = (field, ("0f7a1d0e.jpg", make_image("JPEG"), "image/jpeg"))
            task, answer = await drawn(api, edit(api, [file], **fields))
            assert (answer.status_code, task.input.size) == (200, Size(512, 512))
            assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == b"the image"


async def test_what_librechat_sends(open_api, make_image):
    """`api/app/clients/tools/structured/OpenAIImageTools.js` at 8731432 and `DALLE3.js`.

    The first reads only `b64_json`, with whatever model IMAGE_GEN_OAI_MODEL names; the second reads `url`.
    """
    aliases = "gpt-image-1=hidream-i1-dev,gpt-image-full=hidream-i1-full,dall-e-3=hidream-i1-dev"
    async with open_api(model_aliases=aliases) as api:
        named = {"model": "gpt-image-full", "prompt": "a hat", "n": 1, "background": "auto", "output_format": "png"}
        task, answer = await drawn(api, api.post("/v1/images/generations", **named, quality="auto", size="auto"))
        assert (task.model, list(answer.json()["data"][0])) == ("wavespeed-ai/hidream-i1-full", ["b64_json"])
        generation = {"model": "gpt-image-1", "prompt": "a hat", "n": 1, "background": "auto", "output_format": "webp"}
        generation |= {"output_compression": 100, "quality": "auto", "size": "auto"}
        _, answer = await drawn(api, api.post("/v1/images/generations", **generation))
        assert list(answer.json()["data"][0]) == ["b64_json"]
        assert "warnings" not in answer.json()
        fields = {"model": "gpt-image-1", "prompt": "a hat", "quality": "auto", "size": "auto"}
        file = ("image[]", ("photo.png", make_image(size=(300, 400)), "image/png"))
        task, answer = await drawn(api, edit(api, [file], **fields))
        assert (list(answer.json()["data"][0]), task.input.size) == (["b64_json"], Size(300, 400))
        answer = await edit(api, [file, file], **fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
        generation = {"model": "dall-e-3", "quality": "standard", "style": "vivid", "size": "1024x1024", "n": 1}
        _, answer = await drawn(api, api.post("/v1/images/generations", prompt="a hat", **generation))
        assert answer.json()["data"][0]["url"].startswith("http://test/outputs/")


async def test_a_form_says_the_same_as_json(api, make_image):
    data = make_image(size=(256, 256))
    said = {"prompt": "a", "seed": 7, "strength": 0.5, "output_format": "jpeg", "aspect_ratio": "16:9"}
    by_json, _ = await drawn(api, api.post(PATH, image=base64.b64encode(data).decode(), **said))
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}
    by_form, _ = await drawn(api, edit(api, [("image", ("a.png", data))], **texts))
    one, other = (task.input.to_json() | {"image": None} for task in (by_json, by_form))
    assert one == other
