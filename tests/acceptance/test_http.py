"""Plain HTTP: from a prompt to an image, in every way that the documents describe."""

import base64
import io
import json

import httpx
import pytest
from PIL import ExifTags, Image
from service import MODEL, PROMPT

FEW = {"num_inference_steps": 4}
"""Where the image itself is not the point: a seventh of the usual 28."""
FIELDS = {
    "id",
    "model",
    "outputs",
    "urls",
    "has_nsfw_contents",
    "status",
    "created_at",
    "error",
    "executionTime",
    "timings",
    "seed",
    "version",
}


def about(image):
    if image.format == "PNG":
        return image.text
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    return json.loads(comment.removeprefix(b"ASCII\0\0\0"))


def test_the_seed_documents_own_request(service):
    submitted = service.submit(
        "v2",
        prompt='A Ghibli-inspired scene featuring a giant, friendly creature holding a sign saying "HiDream"',
        size="1024*1024",
        seed=-1,
        enable_base64_output=True,
        enable_safety_checker=True,
    )
    assert (submitted["status"], submitted["outputs"]) == ("created", [])
    data = service.result(submitted)
    assert set(data) == FIELDS | {"warnings"}, "the prompt is longer than what nano reads"
    assert (data["status"], data["error"], data["has_nsfw_contents"]) == ("completed", "", [False])
    assert 0 < data["timings"]["inference"] <= data["executionTime"]
    image = Image.open(io.BytesIO(base64.b64decode(data["outputs"][0], validate=True)))
    assert (image.format, image.size) == ("PNG", (1024, 1024))
    assert about(image) == {"Software": "hidream", "seed": str(data["seed"]), "version": data["version"]}


@pytest.mark.parametrize(
    ("output_format", "media_type"),
    [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp"), ("avif", "image/avif")],
)
def test_every_format_is_downloaded_without_a_key(service, output_format, media_type):
    data = service.result(service.submit(size="512*640", seed=3, output_format=output_format, **FEW))
    file = httpx.get(data["outputs"][0], timeout=60)
    assert (file.status_code, file.headers["content-type"]) == (200, media_type)
    image = Image.open(io.BytesIO(file.content))
    assert image.size == (512, 640)
    assert (about(image)["seed"], about(image)["version"]) == ("3", data["version"])
    part = httpx.get(data["outputs"][0], headers={"Range": "bytes=0-9"}, timeout=60)
    assert (part.status_code, part.content) == (206, file.content[:10])


@pytest.mark.parametrize("size", ["256*256", "1536*512", "1000x776", "333*501", "1792x1024"])
def test_the_size_that_was_asked_is_the_size_of_the_image(service, size):
    _, file = service.draw(size=size, **FEW)
    assert Image.open(io.BytesIO(file)).size == tuple(map(int, size.replace("x", "*").split("*")))


def test_a_random_seed_can_be_repeated(service):
    first, file = service.draw(size="512*512", seed=-1, **FEW)
    second, again = service.draw(size="512*512", seed=first["seed"], **FEW)
    assert file == again
    assert second["seed"] == first["seed"]
    other, different = service.draw(size="512*512", seed=-1, **FEW)
    assert other["seed"] != first["seed"]
    assert different != file


def test_sync_mode_answers_with_the_image(service):
    data = service.submit(size="512*512", enable_sync_mode=True, **FEW)
    assert (data["status"], len(data["outputs"])) == ("completed", 1)


def test_many_at_once_are_all_drawn_and_none_changes_another(service):
    sizes = ["256*256", "512*256", "512*512"] * 2
    asked = [
        {
            "size": size,
            "seed": seed,
        }
        | FEW
        for seed, size in enumerate(sizes)
    ]
    submitted = [service.submit(**body, output_format="png") for body in asked]
    done = [service.result(data) for data in submitted]
    assert {data["status"] for data in done} == {"completed"}
    assert [data["seed"] for data in done] == list(range(6))
    _, alone = service.draw(**asked[1], output_format="png")
    assert httpx.get(done[1]["outputs"][0], timeout=60).content == alone


def test_a_refused_prompt_is_a_failed_task(service):
    data = service.submit(prompt="a naked child", enable_safety_checker=False)
    assert (data["status"], data["code"]) == ("failed", 1200)
    assert service.result(data)["error"] == data["error"] != ""


def test_without_the_checker_the_flag_is_false(service):
    data, _ = service.draw(size="256*256", enable_safety_checker=False, **FEW)
    assert data["has_nsfw_contents"] == [False]


BAD = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "x" * 10_001}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"size": "10*10"}, "size"),
    ({"size": "2049*2000"}, "size"),
    ({"size": "abc"}, "size"),
    ({"size": 1024}, "size"),
    ({"seed": -2}, "seed"),
    ({"seed": 10**10}, "seed"),
    ({"seed": "7"}, "seed"),
    ({"seed": True}, "seed"),
    ({"enable_base64_output": "yes"}, "enable_base64_output"),
    ({"enable_safety_checker": 1}, "enable_safety_checker"),
    ({"output_format": "bmp"}, "output_format"),
]


@pytest.mark.parametrize("api", ["v2", "v3"])
@pytest.mark.parametrize(("wrong", "name"), BAD, ids=lambda value: f"{value!r:.30}")
def test_bad_input_is_a_400_that_names_it(service, api, wrong, name):
    answer = service.http.post(f"/api/{api}/{MODEL}", json={"prompt": PROMPT} | wrong)
    assert answer.status_code == 400
    body = answer.json()
    assert body == {"code": 400, "message": body["message"], "data": None, "error": body["message"]}
    assert body["message"].startswith(f"{name} ")
    assert "accepted" in body["message"]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b'{"prompt": "a red', "application/json", 400),
        (b"prompt=a", "application/x-www-form-urlencoded", 400),
        (b" " * (2**24 + 1), "application/json", 413),
    ],
)
def test_bodies_that_are_not_accepted(service, content, content_type, status):
    answer = service.http.post(f"/api/v3/{MODEL}", content=content, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (status, status)


def test_a_long_body_in_chunks_is_cut_off(service):
    answer = service.http.post(
        f"/api/v3/{MODEL}",
        content=(b" " * 1_000_000 for _ in range(20)),
        headers={"Content-Type": "application/json"},
    )
    assert (answer.status_code, answer.json()["code"]) == (413, 413)


def test_nulls_and_unknown_keys_are_ignored(service):
    data = service.submit(size=None, seed=None, enable_base64_output=None, output_format=None, loras=[], num_images=1)
    assert data["status"] == "created"


@pytest.mark.parametrize("header", [None, "Bearer wrong", "wrong"])
def test_without_a_key_nothing_is_answered(service, header):
    headers = {"Authorization": header} if header else {}
    for answer in (
        httpx.post(f"{service.url}/api/v3/{MODEL}", json={"prompt": PROMPT}, headers=headers, timeout=60),
        httpx.get(f"{service.url}/api/v2/predictions/{'0' * 32}/result", headers=headers, timeout=60),
    ):
        assert (answer.status_code, answer.json()["code"]) == (401, 401)


def test_what_is_not_there(service):
    assert service.http.get(f"/api/v3/predictions/{'0' * 32}").status_code == 404
    assert service.http.get("/nothing").json()["code"] == 404
    assert service.http.get(f"/api/v3/{MODEL}").json()["code"] == 405
