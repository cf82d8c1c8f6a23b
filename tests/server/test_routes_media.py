"""Uploads in both forms: what is accepted, and what only looks like an image."""

import asyncio
import zlib

import numpy as np
import pytest

from hidream.outputs.encode import encode
from hidream.store import keys, uploads
from hidream.types import ImageFormat

MODEL = "wavespeed-ai/hidream-i1-dev"


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def bomb(width=30_000, height=30_000):
    """A PNG of a few kB that would unfold to gigabytes."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10_000))
        + chunk(b"IEND", b"")
    )


def avif():
    """A file as we write them, and do not read strangers'."""
    return encode(np.zeros((8, 8, 3), np.uint8), ImageFormat.AVIF, seed=1, version="v")


async def upload(api, data, filename="a.png", api_name="v3", field="file"):
    files = {field: (filename, data, "image/png")}
    return await api.client.post(f"/api/{api_name}/media/upload/binary", files=files, headers=api.bearer)


@pytest.mark.parametrize("api_name", ["v2", "v3"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_a_form_is_taken(api, make_image, api_name, kind):
    data = make_image(kind) + b"\r\n--x\r\n\r\n"  # what looks like a boundary is none
    answer = await upload(api, data, 'straße ".png', api_name)
    got = answer.json()["data"]
    assert (answer.status_code, got["type"], got["size"]) == (200, "image", len(data))
    file = await api.client.get(got["download_url"])
    assert (file.content, file.headers["content-type"]) == (data, f"image/{kind.lower()}")


@pytest.mark.parametrize(
    ("content_type", "body", "status", "message"),
    [
        ("application/json", b"{}", 400, "Content-Type is 'application/json'; accepted: multipart/form-data"),
        ("multipart/form-data", b"", 400, "Content-Type is 'multipart/form-data'"),
        ("multipart/form-data; boundary=x", b"", 400, "file is absent"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nhello\r\n--x--", 400, "file is absent"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nhello\r\n--x--',
            400,
            "file is absent",
        ),
        (
            'multipart/form-data; boundary="x y"',
            b'--x y\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n--x y--',
            400,
            "file is not an image that can be read (5 bytes)",
        ),
    ],
)
async def test_another_form_is_a_400(api, content_type, body, status, message):
    headers = api.bearer | {"Content-Type": content_type}
    answer = await api.client.post("/api/v3/media/upload/binary", content=body, headers=headers)
    assert (answer.status_code, answer.json()["message"][: len(message)]) == (status, message)


async def test_a_file_that_is_too_large_is_a_413(open_api, make_image):
    async with open_api(upload_max_bytes=2048) as api:
        data = make_image()
        assert (await upload(api, data + b"x" * (2048 - len(data)))).status_code == 200
        assert (await upload(api, data + b"x" * (2049 - len(data)))).status_code == 413
        assert (await upload(api, b"x" * 100_000)).status_code == 413
        assert (await api.post("/api/v3/media/uploads", filename="a", size=2049)).status_code == 413
        ticket = (await api.post("/api/v3/media/uploads", filename="a", size=5)).json()["data"]
        assert (await api.client.put(ticket["upload"]["url"], content=b"x" * 2049)).status_code == 413


@pytest.mark.parametrize(
    "data",
    [b"", b"<svg/>", b"GIF89a" + bytes(100), b"%PDF-1.7", bomb(), bomb(9000, 9000), b"\x89PNG\r\n\x1a\n", avif()],
    ids=["empty", "svg", "gif", "pdf", "bomb", "small bomb", "half", "avif"],
)
async def test_what_is_no_image_is_refused_whatever_it_calls_itself(api, data):
    answer = await upload(api, data, "photo.png")
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("file ")
    asked = {"filename": "photo.png", "size": max(1, len(data))}
    ticket = (await api.post("/api/v3/media/uploads", **asked)).json()["data"]
    answer = await api.client.put(ticket["upload"]["url"], content=data)
    assert (answer.status_code, (await api.client.get(ticket["download_url"])).status_code) == (400, 404)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_a_file_that_ends_too_early_is_refused(api, make_image, kind):
    data = make_image(kind, (300, 300))
    assert (await upload(api, data[: len(data) // 2])).status_code == 400


async def test_a_place_for_a_file_is_filled_once(api, make_image):
    data = make_image("JPEG")
    asked = {"filename": "a.jpg", "size": len(data), "content_type": "image/jpeg"}
    ticket = (await api.post("/api/v3/media/uploads", **asked)).json()["data"]
    put = ticket["upload"]
    assert (put["method"], put["headers"]) == ("PUT", {"Content-Type": "image/jpeg"})
    for _ in range(2):
        answer = await api.client.put(put["url"], content=data, headers=put["headers"])
        assert answer.json()["data"] == {"filename": "a.jpg", "size": len(data)}
    other = await api.client.put(put["url"], content=make_image("PNG"))
    assert other.status_code == 400
    assert (await api.client.get(ticket["download_url"])).content == data
    for name in ("x" * 43 + ".png", "x", "..%2Fhidream.db"):
        assert (await api.client.put(f"/uploads/{name}", content=data)).status_code == 404


async def test_what_a_revoked_key_has_announced_is_a_404(api, make_image):
    data = make_image()
    tickets = [(await api.post("/api/v3/media/uploads", filename="a", size=len(data))).json()["data"] for _ in "ab"]
    urls = [ticket["upload"]["url"] for ticket in tickets]
    assert (await api.client.put(urls[0], content=data)).status_code == 200
    (key,) = await keys.list_keys(api.database)
    await keys.revoke(api.database, key.id)
    for url in urls:
        answer = await api.client.put(url, content=data)
        assert (answer.status_code, "its key was revoked" in answer.json()["message"]) == (404, True)
    assert [(await api.client.get(url)).status_code for url in urls] == [200, 404]


async def test_two_processes_that_fill_one_upload_keep_one_file_whole(open_apis, make_image):
    async with open_apis(2) as (one, two):
        images = [make_image("PNG"), make_image("JPEG"), make_image("WEBP")] * 2
        given = (await one.post("/api/v3/media/uploads", filename="a", size=max(map(len, images)))).json()["data"]
        name = given["upload"]["url"].rpartition("/")[2]
        claim = await uploads.claim(one.database, name, 60)
        busy = await two.client.put(f"/uploads/{name}", content=images[0])
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "5")
        assert busy.json()["message"] == "another request is putting a file to this URL; try again later"
        await uploads.release(one.database, name, claim, "image/png")
        puts = [(one, two)[i % 2].client.put(f"/uploads/{name}", content=data) for i, data in enumerate(images)]
        statuses = [answer.status_code for answer in await asyncio.gather(*puts)]
        assert set(statuses) <= {200, 400, 413, 429}
        (kept,) = {data for data, status in zip(images, statuses, strict=True) if status == 200}
        assert (await two.client.get(f"/uploads/{name}")).content == kept
        row = await uploads.get(two.database, name)
        assert (row.stored, row.size) == (True, len(kept))
        assert (await two.client.put(f"/uploads/{name}", content=kept)).status_code == 200


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "filename or size is absent"),
        ({"filename": "a"}, "filename or size is absent"),
        ({"filename": 5, "size": 5}, "filename is 5"),
        ({"filename": "a\0", "size": 5}, "filename has "),
        ({"filename": "a", "size": 0}, "size is 0"),
        ({"filename": "a", "size": "5"}, "size is '5'"),
        ({"filename": "a", "size": 10**40}, "size is 1000"),
        ({"filename": "a", "size": 5, "content_type": "video/mp4"}, "content_type is 'video/mp4'"),
        ({"filename": "a", "size": 5, "content_type": {}}, "content_type is {}"),
        (
            {"filename": "a", "size": 5, "content_type": "image/avif"},
            "content_type is 'image/avif'; accepted: image/png, ",
        ),
        ({"filename": "a", "size": 5, "content_type": ["image/png"]}, "content_type is ['image/png']"),
    ],
)
async def test_an_announcement_that_is_not_accepted(api, asked, message):
    answer = await api.post("/api/v3/media/uploads", **asked)
    assert (answer.status_code, answer.json()["message"][: len(message)]) == (400, message)


async def test_names_of_files_are_kept_as_far_as_they_can_be_shown(api, make_image):
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a\0b\x1b[1m\xff.png"\r\n\r\n'
    content_type = "multipart/form-data; boundary=x"
    answer = await api.raw("/api/v3/media/upload/binary", head + make_image() + b"\r\n--x--", content_type)
    assert answer.json()["data"]["filename"] == "ab[1m\ufffd.png"
    assert len((await upload(api, make_image(), "x" * 300 + ".png")).json()["data"]["filename"]) == 256
    asked = await api.post("/api/v3/media/uploads", filename="x" * 300, size=5)
    assert asked.status_code == 200
