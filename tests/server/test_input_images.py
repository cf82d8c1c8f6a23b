"""Images of requests, from any source: stored for the worker, or a 400 that says what is wrong."""

import asyncio
import base64
import contextlib
import io
import struct
import zlib

import pytest
from fetching import fetched
from PIL import ExifTags, Image

from hidream.errors import InvalidInput
from hidream.outbound.targets import Allowlist
from hidream.server.fetch import Rules
from image_files import progressive_jpeg

LOOPBACK = "127.0.0.0/8"


class Site:
    """A web server that answers each path as told, and notes who asked."""

    def __init__(self):
        self.answers, self.asked = {}, []

    async def handle(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            self.asked.append(head.decode())
            answer = self.answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            if answer is None:
                await reader.read()  # until the client gives up
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def put(self, path, data, status="200 OK", **headers):
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.answers[path] = f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n{lines}\r\n".encode() + data


@contextlib.asynccontextmanager
async def site():
    made = Site()
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await asyncio.sleep(0.01)  # its connections end


async def given(api):
    """The bytes that the worker will read as image and mask."""
    asked = (await api.claim()).input
    return [await api.service.uploads.read(name) for name in (asked.image, asked.mask) if name]


async def test_base64_and_data_uris(api, make_image):
    image, mask = make_image("JPEG"), make_image("PNG")
    naked, other = base64.b64encode(image).decode(), base64.b64encode(mask).decode()
    for text in (naked, f"data:image/png;base64,{naked}", f" {naked[:9]}\n{naked[9:]} "):
        answer = await api.submit(prompt="a", image=text, mask=f"data:;base64,{other}", strength=0.5)
        assert answer.status_code == 200, answer.text
        assert await given(api) == [image, mask]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
async def test_base64_as_clients_write_it(api, make_image, kind):
    """Without padding, in the URL-safe alphabet, in lines, and with its signs escaped in a data: URI."""

    for width in (7, 8, 9):  # files of different lengths, and so of different padding
        image = make_image(kind, size=(width, 8))
        usual, url_safe = base64.b64encode(image).decode(), base64.urlsafe_b64encode(image).decode()
        escaped = usual.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        for text in (
            usual.rstrip("="),
            url_safe,
            url_safe.rstrip("="),
            "\r\n".join(usual[i : i + 76] for i in range(0, len(usual), 76)),
            f"data:image/png;base64,{url_safe.rstrip('=')}\n",
            f"data:image/png;base64,{escaped}",
            f"data:image/png;base64, {usual}",
        ):
            answer = await api.submit(prompt="a", image=text)
            assert answer.status_code == 200, answer.text
            assert await given(api) == [image]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("aGVs!G8=", "with '!' at 4: not base64"),
        ("aGVs\nbG8$=", "with '$' at 8: not base64"),
        ("data:image/png;base64,aGVs.G8=", "with '.' at 26: not base64"),
        ("aGV=sbG8", "with '=' at 3: not base64"),
        ("ftp://example.org/a.png", "with ':' at 3: not base64"),
        ("data:image/png,aGVsbG8=", "a data: URI without ;base64 before its comma"),
        ("aGVsb", "ends within a byte, after 5 digits of base64"),
        ("aGVsbG8", "is not an image that can be read (5 bytes)"),
        ("", None),
        ("=", "is not an image that can be read (0 bytes)"),
    ],
)
async def test_what_is_wrong_with_a_text_is_said(api, text, wrong):
    answer = await api.submit(prompt="a", image=text)
    if wrong is None:
        assert answer.status_code == 200
        return
    message = answer.json()["message"]
    assert (answer.status_code, message.startswith("image ")) == (400, True)
    assert wrong in message
    assert "accepted" in message


@pytest.mark.parametrize("value", [5, True, ["aGVsbG8="], {"url": "https://a.example"}])
async def test_an_image_is_a_text(api, value):
    answer = await api.submit(prompt="a", image=value)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith(f"image is {value!r}; accepted: the text of a URL")


async def test_a_telephones_photo_with_more_images_behind_the_first(api):
    photo = io.BytesIO()
    first, second = (Image.new("RGB", size, (200, 30, 60)) for size in ((640, 320), (64, 32)))
    first.save(photo, "MPO", save_all=True, append_images=[second])
    answer = await api.submit(prompt="a", image=base64.b64encode(photo.getvalue()).decode())
    assert answer.status_code == 200, answer.text
    asked = (await api.claim()).input
    assert (asked.image.endswith(".jpeg"), str(asked.size)) == (True, "640*320")


async def test_a_file_may_be_as_large_as_the_limit_and_no_larger(open_api, make_image):
    async with open_api(upload_max_bytes=4096) as api:
        file = make_image("JPEG").ljust(4096, b"\0")
        for data, status in ((file, 200), (file + b"\0", 400)):
            answer = await api.submit(prompt="a", image=base64.b64encode(data).decode())
            assert answer.status_code == status, answer.text
        assert answer.json()["message"] == "image has 4097 bytes; accepted: up to 4096"


@pytest.mark.parametrize("sides", [(9000, 9000), (20_000, 20_000), (60_000, 60_000), (1, 65_537)])
async def test_a_bomb_is_told_by_its_pixels(api, make_image, sides):
    """The header alone says it: 81 million are more than are accepted, 400 million more than Pillow opens.

    Of rows of a single pixel, each takes Pillow tens of bytes.
    """

    head = b"IHDR" + struct.pack(">II", *sides) + bytes((8, 2, 0, 0, 0))
    file = make_image("PNG")
    file = file[:12] + head + struct.pack(">I", zlib.crc32(head)) + file[33:]
    answer = await api.submit(prompt="a", image=base64.b64encode(file).decode())
    told = "pixels; accepted: 67108864 in all, 65536 a side"
    assert (answer.status_code, told in answer.json()["message"]) == (400, True)


SIZES = [
    ((640, 360), "640*360"),
    ((360, 640), "360*640"),
    ((257, 1999), "257*1999"),
    ((100, 100), "256*256"),
    ((320, 180), "448*256"),
    ((4000, 3000), "2048*1536"),
    ((4000, 200), "2048*256"),
    ((1, 900), "256*2048"),
]


@pytest.mark.parametrize(("pixels", "expected"), SIZES)
async def test_an_image_decides_the_size_that_nobody_else_does(api, make_image, pixels, expected):
    image = base64.b64encode(make_image(size=pixels)).decode()
    for said in ({}, {"aspect_ratio": "auto"}, {"size": None, "width": ""}):
        id_ = (await api.submit(prompt="a", image=image, **said)).json()["data"]["id"]
        task = await api.claim()
        assert (task.id, str(task.input.size)) == (id_, expected)
        assert task.pixels == task.input.size.width * task.input.size.height
    listed = (await api.post("/api/v3/predictions", include_inputs=True)).json()["data"]["items"]
    assert {item["input"]["size"] for item in listed} == {expected}
    for said, own in (
        ({"size": "512*768"}, "512*768"),
        ({"width": 512, "height": 768}, "512*768"),
        ({"target_size": {"width": 512, "height": 768}}, "512*768"),
        ({"aspect_ratio": "16:9"}, "1360*768"),
    ):
        await api.submit(prompt="a", image=image, **said)
        assert str((await api.claim()).input.size) == own


async def test_an_uploaded_image_decides_the_size_as_it_is_shown(api, make_image):
    for orientation, expected in (
        (None, "640*320"),
        (1, "640*320"),
        (3, "640*320"),
        (6, "320*640"),
        (8, "320*640"),
    ):
        exif = Image.Exif()
        if orientation:
            exif[ExifTags.Base.Orientation] = orientation
        for kind in ("JPEG", "PNG", "WEBP"):
            files = {"file": ("a", make_image(kind, size=(640, 320), exif=exif))}
            answer = await api.client.post("/api/v3/media/upload/binary", files=files, headers=api.bearer)
            answer = await api.submit(prompt="a", image=answer.json()["data"]["download_url"])
            assert "warnings" not in answer.json()["data"]
            assert str((await api.claim()).input.size) == expected


async def test_an_upload_by_its_url_from_wherever_it_is_reached(api, make_image):
    files = {"file": ("a.png", make_image())}
    answer = await api.client.post("/api/v3/media/upload/binary", files=files, headers=api.bearer)
    url = answer.json()["data"]["download_url"]
    name = url.rpartition("/")[2]
    for text in (url, f"https://other.example/prefix/uploads/{name}", name, f" {url}\n"):
        assert (await api.submit(prompt="a", image=text)).status_code == 200
        assert (await api.claim()).input.image == name
    listed = (await api.post("/api/v3/predictions", include_inputs=True)).json()["data"]["items"]
    assert {item["input"]["image"] for item in listed} == {url}


async def test_a_jpeg_of_hundreds_of_scans_is_refused_before_it_is_decoded(api):
    files = {"file": ("a", progressive_jpeg(8192, 400))}
    answer = await api.client.post("/api/v3/media/upload/binary", files=files, headers=api.bearer)
    assert answer.status_code == 400
    assert answer.json()["message"] == "file has 33 scans or more, too many for its size; accepted: up to 32"


async def test_slow_images_of_one_key_hold_no_others_up_nor_the_end_of_the_process(api, make_image):
    """What is counted lets them pass, and each takes seconds."""
    slow = progressive_jpeg(8192, 32)

    other = await api.key()

    async def upload(data, headers):
        path = "/api/v3/media/upload/binary"
        return await api.client.post(path, files={"file": ("a", data)}, headers=headers)

    assert (await upload(make_image(), other)).status_code == 200
    attack = [asyncio.create_task(upload(slow, api.bearer)) for _ in range(6)]
    await asyncio.sleep(0)  # they are first
    for _ in range(3):
        assert (await upload(make_image("JPEG"), other)).status_code == 200
    assert not any(task.done() for task in attack)
    api.service.input_images.stop()
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*attack)
    assert {answer.status_code for answer in answers} == {503}
    assert answers[0].json()["message"].endswith("cannot be read now: the process is stopping; try again later")


async def test_an_image_from_a_url_also_after_redirects(open_api, make_image):
    async with open_api(allowed=LOOPBACK) as api, site() as web:
        web.put("/a.png", make_image())
        web.put("/1", b"", "302 Found", Location="/2?x=%20")
        web.put("/2?x=%20", b"", "307 Temporary Redirect", Location=f"{web.url}/a.png")
        for path in ("/a.png", "/1"):
            answer = await api.submit(prompt="a", image=web.url + path)
            assert answer.status_code == 200, answer.text
            assert await given(api) == [make_image()]
        assert not any(api.secret in head for head in web.asked)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/absent", "image could not be fetched: its server answered 404"),
        ("/text", "image is not an image that can be read (5 bytes)"),
        ("/large", "image has more than 4096 bytes"),
        ("/round", "image redirects more than 3 times"),
        ("/inner", "image is 'http://169.254.169.254/latest'"),
        ("/file", "image is 'file:///etc/passwd'"),
        ("/cut", "image could not be fetched: its server cannot be reached"),
        ("/nonsense", "image could not be fetched: its server cannot be reached"),
    ],
)
async def test_a_url_that_gives_no_image_is_a_400(open_api, path, message):
    async with open_api(allowed=LOOPBACK, upload_max_bytes=4096) as api, site() as web:
        web.put("/text", b"hello")
        web.put("/large", b"x" * 5000)
        web.put("/round", b"", "301 Moved", Location="/round")
        web.put("/inner", b"", "302 Found", Location="http://169.254.169.254/latest")
        web.put("/file", b"", "302 Found", Location="file:///etc/passwd")
        web.answers["/cut"] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"
        web.answers["/nonsense"] = b"hello\r\n\r\n"
        answer = await api.submit(prompt="a", image=web.url + path)
        assert (answer.status_code, answer.json()["message"][: len(message)]) == (400, message)
        assert await api.claim() is None


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/a.png",
        "http://localhost/a.png",
        "http://[::1]/a",
        "http://10.1.2.3/a",
        "https://0x7f000001/",
    ],
)
async def test_inner_addresses_are_refused(api, url):
    answer = await api.submit(prompt="a", image=url)
    assert (answer.status_code, answer.json()["message"].startswith("image is ")) == (400, True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"image": 5}, "image is 5; accepted"),
        ({"image": ["a"]}, "image is ['a']"),
        ({"image": "nonsense!"}, "image is 'nonsense!'"),
        ({"image": "data:image/png,abc"}, "image is 'data:image/png,abc'"),
        ({"image": base64.b64encode(b"hello").decode()}, "image is not an image"),
        ({"image": "A" * 10_000}, "image has 7500 bytes; accepted: up to 4096"),
        ({"image": "x" * 43 + ".png"}, "image is 'xxxx"),
        ({"mask": "aGVsbG8="}, "mask is given without an image"),
        ({"image": "aGVsbG8=", "strength": 0}, "strength is 0; accepted: a number from 0.01 to 1"),
    ],
)
async def test_what_is_no_image_is_a_400(open_api, body, message):
    async with open_api(upload_max_bytes=4096) as api:
        answer = await api.submit(prompt="a", **body)
        assert (answer.status_code, answer.json()["message"][: len(message)]) == (400, message)
        assert len(answer.json()["message"]) < 300


async def test_a_repeated_request_fetches_nothing_again(open_api, make_image):
    async with open_api(allowed=LOOPBACK) as api, site() as web:
        web.put("/a.png", make_image())
        key = {"Idempotency-Key": "a"}
        first = await api.submit(prompt="a", image=f"{web.url}/a.png", headers=key)
        web.answers.clear()
        again = await api.submit(prompt="a", image=f"{web.url}/a.png", headers=key)
        assert again.json()["data"]["id"] == first.json()["data"]["id"]
        assert again.headers["idempotent-replayed"] == "true"
        assert (await api.submit(prompt="b", image="aGVsbG8=", headers=key)).status_code == 400
        other = base64.b64encode(make_image("JPEG")).decode()
        assert (await api.submit(prompt="a", image=other, headers=key)).status_code == 409


async def test_nothing_is_fetched_for_what_is_refused_or_by_v2(open_api):
    async with open_api(allowed=LOOPBACK) as api, site() as web:
        assert (await api.submit("v2", prompt="a", image=f"{web.url}/a")).status_code == 200
        refused = await api.submit(prompt="naked child", image=f"{web.url}/a")
        assert refused.json()["data"]["code"] == 1200
        assert not web.asked


@pytest.mark.integration
async def test_a_server_that_hangs_is_not_waited_for():
    async with site() as web:
        web.answers["/hang"] = None
        rules = Rules(Allowlist.read([LOOPBACK]), 4096, total_s=0.2)
        with pytest.raises(InvalidInput, match=r"image could not be fetched within 0\.2 s"):
            await fetched("image", f"{web.url}/hang", rules)


async def test_a_name_that_leads_inside_is_refused():
    async def inside(host, port):
        return ["93.184.215.14", "10.0.0.1"]

    with pytest.raises(InvalidInput, match="image leads to an address that is not public"):
        await fetched("image", "https://images.example/a.png", Rules(Allowlist(), 4096, resolve=inside))
