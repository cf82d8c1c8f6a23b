"""Expensive bodies: not waited for, limited to their announced size, never in memory, counted first."""

import asyncio
import base64
import contextlib
import json

import pytest
from served import served

from hidream.file_names import random_name
from hidream.types import ImageFormat

MODEL = "wavespeed-ai/hidream-i1-dev"
HEAD = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


async def raw(port, head, data=b""):
    """Send a request as it is written; the whole answer, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode().replace(b"\n", b"\r\n") + b"\r\n\r\n" + data)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer.decode()


def parts(api):
    folder = api.settings.home / "uploads" / ".parts"
    return list(folder.iterdir()) if folder.exists() else []


def kept(api):
    return [path for path in (api.settings.home / "uploads").glob("*") if path.is_file()]


async def ticket(api, size):
    return (await api.post("/api/v3/media/uploads", filename="a", size=size)).json()["data"]


async def test_the_body_of_what_is_refused_is_not_waited_for(open_api):
    """Of 20 MB that are announced none comes: the answer is there at once, and the connection ends."""

    async with open_api(body_max_bytes=1_000_000) as api:
        name = (await ticket(api, 10))["upload"]["url"].rpartition("/")[2]
        async with served(api) as client:
            port, key = client.base_url.port, f"Authorization: Bearer {api.secret}"
            long, form = "Host: a\nContent-Length: 20000000", "Content-Type: multipart/form-data; boundary=x"
            json = "Content-Type: application/json"
            for head, status in (
                (f"PUT /uploads/{random_name(ImageFormat.PNG)} HTTP/1.1\n{long}", 404),
                (f"PUT /uploads/x HTTP/1.1\n{long}", 404),
                (f"PUT /uploads/{name} HTTP/1.1\nHost: a\nTransfer-Encoding: chunked", 413),
                (f"POST /api/v3/{MODEL} HTTP/1.1\n{long}\n{json}", 401),
                (f"POST /api/v3/{MODEL} HTTP/1.1\n{long}\n{json}\nAuthorization: Bearer x", 401),
                (f"POST /v1/images/generations HTTP/1.1\n{long}\n{json}", 401),
                (f"POST /api/v3/predictions HTTP/1.1\n{long}\n{json}", 401),
                (f"POST /api/v3/media/upload/binary HTTP/1.1\n{long}\n{form}", 401),
                (f"POST /api/v3/media/uploads HTTP/1.1\n{long}\n{json}", 401),
                (f"POST /nowhere HTTP/1.1\n{long}", 404),
            ):
                answer = await raw(port, head, b"b\r\nhello world\r\n" if "chunked" in head else b"")
                assert answer.startswith(f"HTTP/1.1 {status} "), (head, answer)
                assert "\r\nconnection: close\r\n" in answer.lower()
            known = f"POST /api/v3/{MODEL} HTTP/1.1\n{long}\n{json}\n{key}"
            answer = await raw(port, known, b" " * 20_000_000)
            assert answer.startswith("HTTP/1.1 413 "), "whoever only listens when all is sent hears it, too"
        assert parts(api) == []


async def test_a_file_is_held_to_the_size_that_was_announced(api, make_image):
    data = make_image()
    url = (await ticket(api, len(data)))["upload"]["url"]

    async def pieces(extra):
        yield data
        yield extra

    assert (await api.client.put(url, content=data + b"x")).status_code == 413
    assert (await api.client.put(url, content=pieces(b"x"))).status_code == 413
    assert (await api.client.put(url, content=pieces(b""))).status_code == 200
    assert parts(api) == []


async def test_of_those_who_fill_one_name_at_once_one_does(api, make_image):
    images = [make_image("PNG"), make_image("JPEG"), make_image("WEBP")]
    given = await ticket(api, max(map(len, images)))
    answers = await asyncio.gather(*(api.client.put(given["upload"]["url"], content=p) for p in images))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 400, 413}  # a larger one than what is there cannot be the same
    got = (await api.client.get(given["download_url"])).content
    assert got == images[statuses.index(200)]


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"--x\r\n\r\n\r\n" * 1000 + b"--x--\r\n", 400, "the form has more than 100 fields"),
        (b"--x\r\n" + HEAD + b"\r\n--xy" * 600 + b"\r\n--x--\r\n", 400, "the form has more than 100 fields"),
        (b"--x\r\n" + b"a: b\r\n" * 1000 + HEAD, 400, "the form cannot be read (Maximum header count"),
        (b"--x\r\na: " + b"b" * 10_000 + b"\r\n" + HEAD, 400, "the form cannot be read (Maximum header size"),
        (b"--x\r\n(: b\r\n" + HEAD, 400, "the form cannot be read (Found invalid character"),
        (b"--x\r\nA: b\r\n\r\n" + b"y" * 68_000 + b"\r\n--x\r\n" + HEAD, 413, "the form has more than 65536 bytes"),
        (b"--x\r\n" + HEAD + b"begun", 400, "the form ends within the field 'file'"),
        (b"--x\r\n" + HEAD + b"y" * 4097 + b"\r\n--x--\r\n", 413, "file is larger than 4096 bytes"),
        (b"--y\r\n" + HEAD, 400, "the form cannot be read"),
    ],
    ids=["a thousand fields", "nearly delimiters", "headers", "header", "no header", "other", "half", "large", "y"],
)
async def test_a_form_costs_no_more_than_its_file(open_api, data, status, message):
    async with open_api(upload_max_bytes=4096) as api:

        async def pieces():
            for at in range(0, len(data), 700):
                yield data[at : at + 700]

        headers = api.bearer | {"Content-Type": "multipart/form-data; boundary=x"}
        path = "/api/v3/media/upload/binary"
        for content in (data, pieces()):
            answer = await api.client.post(path, content=content, headers=headers)
            seen = answer.json()["message"]
            assert (answer.status_code, seen[: len(message)]) == (status, message)
        assert parts(api) == []


async def test_the_first_file_of_a_field_counts_whatever_surrounds_it(api, make_image):
    data = make_image()
    other = b'Content-Disposition: form-data; name="note"\r\n\r\nhello'
    fields = [other, HEAD + data, HEAD + b"another", other]
    form = b"".join(b"\r\n--x\r\n" + field for field in fields) + b"\r\n--x--\r\nepilogue"
    answer = await api.raw("/api/v3/media/upload/binary", form, "multipart/form-data; boundary=x")
    got = answer.json()["data"]
    assert (got["filename"], got["size"]) == ("a", len(data))
    assert (await api.client.get(got["download_url"])).content == data


async def test_limits_of_a_key_are_asked_before_its_body(api, make_image):
    once, little = await api.key(requests_per_minute=1), await api.key(bytes_max=len(make_image()))

    async def upload(headers):
        files = {"file": ("a.png", make_image(), "image/png")}
        return await api.client.post("/api/v3/media/upload/binary", files=files, headers=headers)

    async def announce(headers):
        asked = {"filename": "a", "size": 10}
        return await api.client.post("/api/v3/media/uploads", json=asked, headers=headers)

    for headers, why in ((once, "1 requests a minute"), (little, "bytes of uploads and images")):
        assert (await upload(headers)).status_code == 200
        for answer in [await announce(headers) for _ in range(10)]:
            assert (answer.status_code, why in answer.json()["message"]) == (429, True)
            assert int(answer.headers["retry-after"]) > 0
        files = {"file": ("a.png", b"no image", "image/png")}
        refused = await api.client.post("/api/v3/media/upload/binary", files=files, headers=headers)
        assert refused.status_code == 429, "before anything is looked at"
    assert len(kept(api)) == 2
    assert parts(api) == []


async def test_an_image_within_a_submission_is_held_to_the_bytes_of_its_key(api, make_image):
    headers = await api.key(bytes_max=len(make_image()) + 1)
    image = base64.b64encode(make_image()).decode()
    answers = [await api.submit(headers=headers, prompt="a", image=image) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 429, 429, 429, 429]
    assert len(kept(api)) == 1


async def test_a_refused_prompt_leaves_no_file_and_is_a_request(api, make_image):
    headers = await api.key(requests_per_minute=2)
    image = base64.b64encode(make_image()).decode()
    answers = [await api.submit(headers=headers, prompt="a naked child", image=image) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert answers[0].json()["data"]["status"] == "failed"
    assert kept(api) == parts(api) == []


async def test_long_texts_go_to_files_and_leave_none(api, make_image):
    image = make_image("PNG", (400, 400), compress_level=0)
    naked = base64.b64encode(image).decode()
    assert len(naked) > 400_000
    for text in (naked, f"data:image/png;base64,{naked}", "\n".join((naked[:9], naked[9:])), naked.rstrip("=")):
        answer = await api.submit(prompt="a", image=text, mask=naked, strength=0.5)
        assert answer.status_code == 200, answer.text
        task = await api.claim()
        for name in (task.input.image, task.input.mask):
            assert await api.service.uploads.read(name) == image
    for body_, status, message in (
        ({"prompt": naked}, 400, f"prompt has {len(naked)} characters"),
        ({"prompt": "a", "image": naked[:300_001]}, 400, "image ends within a byte"),
        ({"prompt": "a", "image": naked[:300_000] + "!"}, 400, "image is '"),
        ({"prompt": "a", "loras": naked}, 400, "loras is '"),
        ({"prompt": "a", "size": naked}, 400, "size is '"),
        ({"prompt": "a", "x": [naked]}, 413, "the body has more than 278528 bytes"),
    ):
        answer = await api.submit(**body_)
        assert (answer.status_code, answer.json()["message"][: len(message)]) == (status, message)
        assert len(answer.content) < 2000
    assert (await api.submit(api="v2", prompt="a", image=naked)).json()["data"]["warnings"]
    assert (await api.submit(prompt="a", unknown=naked)).json()["data"]["warnings"]
    assert parts(api) == []


async def test_long_texts_that_nobody_takes_end_before_anything_is_waited_for(api):
    bodies, text = api.service.body_limiter, "A" * 200_000
    sync = asyncio.create_task(api.submit(prompt="a", enable_sync_mode=True, unknown=text))
    images = asyncio.create_task(api.post("/v1/images/generations", prompt="a", n=1, unknown=text))
    async with asyncio.timeout(20):
        while len(api.service.completion_waiter._waiting) < 2:
            await asyncio.sleep(0.005)
        assert (parts(api), bodies._total) == ([], 0)
        for _ in range(2):
            await api.draw()
        assert [(await each).status_code for each in (sync, images)] == [200, 200]


async def test_long_texts_end_before_the_rest_of_what_is_refused_is_waited_for(api):
    head = f"POST /api/v3/{MODEL} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {api.secret}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 2000000\r\n\r\n"
    body = json.dumps({f"a{i}": "A" * 200_000 for i in range(5)})[:-1]
    async with served(api) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(head.encode() + body.encode())
        async with asyncio.timeout(20):
            answer = await reader.readuntil(b"accepted: up to 4")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert (parts(api), api.service.body_limiter._total) == ([], 0)
        writer.close()


async def test_what_needs_no_image_takes_short_bodies_and_no_disk(api):
    pad = "A" * 70_000

    async def pieces():
        yield json.dumps({"x": pad}).encode()

    paths = ["predictions", "predictions/delete", "model/price", "model/pricing"]
    headers = api.bearer | {"Content-Type": "application/json"}
    async with contextlib.AsyncExitStack() as full:
        for key in range(64):
            await full.enter_async_context(api.service.body_limiter.slot(str(key)))
        for path in (*paths, "webhook/secret/rotate", "media/uploads"):
            answers = [
                await api.post(f"/api/v3/{path}", x=pad),
                await api.client.post(f"/api/v3/{path}", content=pieces(), headers=headers),
            ]
            for answer in answers:
                assert (answer.status_code, "larger than 65536 bytes" in answer.text) == (413, True), path
        ids = [f"{number:032x}" for number in range(500)]
        assert (await api.post("/api/v3/predictions/delete", ids=ids)).json()["data"] == {"deleted_count": 0}


@pytest.mark.parametrize("keys", [1, pytest.param(4, marks=pytest.mark.long)])
async def test_slow_bodies_of_some_keys_leave_room_for_the_next(api, make_image, keys):
    """Each begins forty, which never end; another key's image comes in meanwhile."""

    slow = [await api.key() for _ in range(keys)]
    image = base64.b64encode(make_image("PNG", (400, 400), compress_level=0)).decode()
    begun = []
    async with served(api) as client:
        for headers in slow:
            for _ in range(40):
                _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
                head = f"POST /api/v3/{MODEL} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                head += f"Authorization: {headers['Authorization']}\r\nContent-Length: 2000000\r\n\r\n{{"
                writer.write(head.encode())
                begun.append(writer)
        async with asyncio.timeout(20):
            while sum(map(len, api.service.body_limiter._queues.values())) < len(begun) - 64 + 64 // 2**keys:
                await asyncio.sleep(0.005)
            assert (await api.submit(prompt="a", image=image)).status_code == 200
        for writer in begun:
            writer.close()


async def test_a_429_says_what_is_full(api):
    service, images = api.service, api.service.input_images
    for gate in (service.body_limiter, images._fetches, images._fillings):
        gate._wait_s = 0.01
    url = (await ticket(api, 9))["upload"]["url"]
    async with contextlib.AsyncExitStack() as full:
        await full.enter_async_context(images.filling(url.rpartition("/")[2]))
        for key in range(64):
            await full.enter_async_context(images._fetches.slot(str(key)))
        for key in range(63):
            await full.enter_async_context(service.body_limiter.slot(str(key)))
        answers = [
            await api.client.put(url, content=b"x" * 9),
            await api.submit(prompt="a", image="http://example.com/a.png"),
            await api.submit(prompt="a", image="A" * 70_000),
        ]
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(429, "5")] * 3
    assert [answer.json()["message"] for answer in answers] == [
        "another request is putting a file to this URL; try again later",
        "too many images are being fetched from URLs, for this key or for all; try again later",
        "too many large bodies are under way, of this key or of all; try again later",
    ]
    assert parts(api) == []


async def test_an_idempotency_key_knows_long_texts_by_their_bytes(api, make_image):
    image, other = (make_image("PNG", (300, side), compress_level=0) for side in (300, 301))
    headers = {"Idempotency-Key": "once"}
    answers = [
        await api.submit(headers=headers, prompt="a", image=base64.b64encode(data).decode())
        for data in (image, image, other)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 409]
    assert answers[1].headers["idempotent-replayed"] == "true"


async def test_a_client_that_leaves_leaves_nothing_behind(api):
    name = (await ticket(api, 2_000_000))["upload"]["url"].rpartition("/")[2]
    long = f"Host: a\r\nAuthorization: Bearer {api.secret}\r\nContent-Length: 2000000\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\n"
    begun = {
        f"PUT /uploads/{name}": (b"", b"x" * 300_000),
        f"POST /api/v3/{MODEL}": (b"Content-Type: application/json\r\n", b'{"image":"' + b"a" * 300_000),
        "POST /api/v3/media/upload/binary": (form.encode(), b"--x\r\n" + HEAD + b"x" * 300_000),
    }
    async with served(api) as client:
        for request, (headers, data) in begun.items():
            _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(f"{request} HTTP/1.1\r\n{long}".encode() + headers + b"\r\n" + data)
            async with asyncio.timeout(20):
                while not parts(api):
                    await asyncio.sleep(0.005)
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
                while parts(api):
                    await asyncio.sleep(0.005)
