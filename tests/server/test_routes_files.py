"""Downloads: ranges, headers, and only files with a valid name."""

import re

import pytest


async def test_a_finished_image_is_downloaded_without_a_key(api):
    await api.submit(prompt="a house", num_images=2)
    task = await api.draw(b"the image")
    for name in task.output_names:
        file = await api.client.get(f"/outputs/{name}")
        assert (file.status_code, file.content) == (200, b"the image")
        assert file.headers["content-type"] == "image/jpeg"
        assert "immutable" in file.headers["cache-control"]
        assert file.headers["x-content-type-options"] == "nosniff"
        part = await api.client.get(f"/outputs/{name}", headers={"Range": "bytes=4-6"})
        assert (part.status_code, part.content) == (206, b"ima")
        head = await api.client.head(f"/outputs/{name}")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "9")
        known = await api.client.get(f"/outputs/{name}", headers={"If-None-Match": file.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")


async def test_a_range_outside_the_file_is_a_416_in_our_form(api):
    await api.submit(prompt="a house")
    name = (await api.draw(b"the image")).output_name
    answer = await api.client.get(f"/outputs/{name}", headers={"Range": "bytes=99-"})
    assert (answer.status_code, answer.json()["code"]) == (416, 416)
    assert answer.headers["content-range"] == "bytes */9"
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("folder", ["outputs", "uploads"])
@pytest.mark.parametrize(
    "path", ["..%2Fhidream.db", "hidream.db", "x" * 43 + ".png", "%2e%2e/hidream.db", "%00.png", "x" * 43 + "-1.png"]
)
async def test_no_other_file_is_served(api, path, folder):
    answer = await api.client.get(f"/{folder}/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, 404)


async def test_an_upload_is_served_as_what_its_bytes_are(api, make_image):
    data = make_image("WEBP")
    ticket = (await api.post("/api/v3/media/uploads", filename="photo.png", size=len(data))).json()["data"]
    url = ticket["download_url"]
    assert re.fullmatch(r"http://test/uploads/[\w-]{43}\.png", url)
    assert (await api.client.get(url)).status_code == 404, "not there yet"
    assert (await api.client.put(ticket["upload"]["url"], content=data)).status_code == 200
    file = await api.client.get(url)
    assert (file.content, file.headers["content-type"]) == (data, "image/webp")
    assert (await api.client.head(url)).headers["content-type"] == "image/webp"
