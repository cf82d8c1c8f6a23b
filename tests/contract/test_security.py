"""Attacks by a hostile client on real processes and real sockets.

URLs of webhooks and of images have their own: tests/outbound, tests/server/test_input_images.py. Keys are found by
their hash, so no secret is compared; signatures are, by `hmac.compare_digest` (webhooks/signature.py).
"""

import asyncio
import base64
import contextlib
import io
import logging
import re
import select
import socket
import statistics
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image

from hidream.server.app import create_app
from hidream.server.limits.failed_auth import BURST
from hidream.server.service import assemble
from hidream.settings.tables import Settings, Store
from hidream.store import keys, task_metrics
from hidream.store.database import Database
from soak.fleet import KEY, MODEL, Fleet, until

PROMPT = "the-words-of-somebody-else"
ENDLESS_BYTES = 128 * 2**20
ROOM_BYTES = 150 * 2**20
"""How much the API's memory may grow by what it refuses; decoded, each bomb has a GB or more."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    limits = {"HIDREAM_SERVER_BODY_MAX_BYTES": "1000000", "HIDREAM_SERVER_UPLOAD_MAX_BYTES": "2000000"}
    with Fleet(tmp_path_factory.mktemp("security"), apis=1, workers=1, **limits) as fleet:
        yield fleet
        assert "Traceback" not in fleet.logs()
        assert KEY not in fleet.logs()
        assert all(member.alive for member in fleet.members)


@pytest.fixture
def http(fleet):
    with fleet.client() as http:
        yield http


async def test_a_key_is_in_no_log_not_even_with_debugging(tmp_path, caplog):
    pepper = "a pepper of the tests'"
    wrong = "hd_a-key-that-is-not-known"

    with caplog.at_level(logging.DEBUG):
        settings = replace(Settings(home=tmp_path), store=Store(key_pepper=pepper))
        async with Database.open(settings.database_url) as database:
            _, secret = await keys.create(database, "test", frozenset(keys.Scope), pepper=pepper)
            app = create_app(assemble(settings, database))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                for key in (secret, wrong):
                    for path, methods in routes(app):
                        for method in methods:
                            url = path.format(**dict.fromkeys(re.findall(r"\{(\w+)", path), "v3"))
                            await http.request(method, url, headers={"Authorization": f"Bearer {key}"}, json={})
                    body = {"prompt": PROMPT, "seed": "no seed"}
                    path = f"/api/v3/{MODEL}"
                    for sent in (body, body | {"seed": 1}):
                        await http.post(path, headers={"Authorization": f"Bearer {key}"}, json=sent)
    logged = "\n".join(f"{record.getMessage()} {record.args} {record.exc_text}" for record in caplog.records)
    assert "request method=POST" in logged
    for hidden in (secret, wrong, pepper):
        assert hidden not in logged
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("hidream")]
    assert ours
    assert PROMPT not in "\n".join(ours)


def routes(app):
    """Every path and its methods; a parameter may be a whole path."""
    return [
        (route.path.replace(":path", ""), sorted(route.methods)) for route in app.routes if hasattr(route, "methods")
    ]


def test_wrong_keys_are_slow_and_right_ones_beside_them_are_not(fleet, http):
    def guess(i):
        return stranger.get("/api/v3/balance", headers={"Authorization": f"Bearer hd_{i:043}"})

    def balance():
        began = time.monotonic()
        assert http.get("/api/v3/balance").status_code == 200
        return time.monotonic() - began

    with httpx.Client(base_url=fleet.apis[0].url, timeout=60) as stranger, ThreadPoolExecutor(1) as aside:
        answer, guesses = guess(0), 1
        while answer.status_code == 401:
            answer, guesses = guess(guesses), guesses + 1
            assert guesses <= BURST + 60
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        began, later = time.monotonic(), [aside.submit(guess, i) for i in range(3)]
        took_s = [balance() for _ in range(20)]
        answers = [each.result() for each in later]
        assert {answer.status_code for answer in answers} <= {401, 429}  # a second earns one more
        assert time.monotonic() - began >= 1.9 * sum(answer.status_code == 429 for answer in answers) > 0
        assert statistics.median(took_s) < 1


def test_no_route_shows_or_changes_another_keys_task(fleet, http):
    body = {"prompt": PROMPT, "seed": 1, "enable_base64_output": False, "webhook": "http://127.0.0.1:9/hook"}
    named = {"Idempotency-Key": "the same for both"}
    mine = http.post(f"/api/v3/{MODEL}", json=body, headers=named).json()["data"]["id"]
    assert http.get(f"/api/v3/predictions/{mine}", params={"wait_s": 20}).json()["data"]["status"] == "completed"
    owed = http.get(f"/api/v3/predictions/{mine}/webhooks").json()["data"][0]["id"]
    document = http.get("/openapi.json").json()
    with httpx.Client(base_url=fleet.apis[0].url, headers=other_key(fleet), timeout=60) as stranger:
        asked = 0
        for path, operations in document["paths"].items():
            for method in operations:
                for api in ("v2", "v3"):
                    if "{prediction_id}" in path:
                        answer = stranger.request(method, path.format(api=api, prediction_id=mine, delivery_id=owed))
                        assert answer.status_code == 404, (method, path)
                        assert PROMPT not in answer.text
                        asked += 1
        assert asked >= 2 * 6
        listed = stranger.post("/api/v3/predictions", json={"include_inputs": True})
        assert listed.json()["data"]["total"] == 0
        assert PROMPT not in listed.text
        assert stranger.post("/api/v3/predictions/delete", json={"ids": [mine]}).json()["data"] == {"deleted_count": 0}
        again = stranger.post(f"/api/v3/{MODEL}", json=body | {"prompt": "another"}, headers=named)
        assert again.status_code == 200
        assert again.json()["data"]["id"] != mine
        secrets = {client.get("/api/v3/webhook/secret").json()["data"]["secret"] for client in (http, stranger)}
        assert len(secrets) == 2
    after = http.post("/api/v3/predictions", json={"include_inputs": True}).json()["data"]
    assert [(item["id"], item["status"], item["input"]["prompt"]) for item in after["items"]] == [
        (mine, "completed", PROMPT)
    ]


def other_key(fleet):
    async def make():
        async with Database.open(f"sqlite+aiosqlite:///{fleet.home}/hidream.db") as database:
            return (await keys.create(database, "stranger"))[1]

    return {"Authorization": f"Bearer {asyncio.run(make())}"}


TRICKS = [
    "../hidream.db",
    "..%2fhidream.db",
    "..%2Fhidream.db",
    "%2e%2e/hidream.db",
    "%2e%2e%2fhidream.db",
    "..%252fhidream.db",
    "..\\hidream.db",
    "..%5chidream.db",
    "....//hidream.db",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "../../../../../../../../etc/passwd",
    "..%c0%af..%c0%afetc/passwd",
    "hidream.db",
    "hidream.db%00.png",
    ".parts",
    "." * 43 + ".png",
    "A" * 43 + ".png%0d%0aX-Evil:%201",
    "A" * 43 + ".png/..",
    "file:///etc/passwd",
    "A" * 8000,
]


@pytest.mark.parametrize(
    "prefix", ["/outputs/", "/uploads/", "/api/v3/predictions/", "/v1/models/", "/api/v3/wavespeed-ai/"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
def test_no_path_leads_out(fleet, prefix, method):
    before = settled_tree(fleet)
    for trick in TRICKS:
        answer = raw(fleet, f"{method} {prefix}{trick} HTTP/1.1", b"{}")
        status = int(answer.split(b" ", 2)[1])
        assert 400 <= status < 500, (trick, answer[:300])
        assert b"SQLite format" not in answer
        assert b"root:" not in answer
        assert b"X-Evil" not in answer.partition(b"\r\n\r\n")[0]
    assert tree(fleet.home) == before


def raw(fleet, line, body):
    """Send a request as it is, which no client would."""
    url = httpx.URL(fleet.apis[0].url)
    head = [line, f"Host: {url.host}", f"Authorization: Bearer {KEY}", "Content-Type: application/json"]
    head += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall("\r\n".join(head).encode("latin-1") + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def settled_tree(fleet):
    """All files, once everything that earlier tests have asked for is drawn."""

    async def unfinished():
        async with Database.open(f"sqlite+aiosqlite:///{fleet.home}/hidream.db") as database:
            return await task_metrics.unfinished(database)

    until(lambda: not asyncio.run(unfinished()))
    return tree(fleet.home)


def tree(folder):
    """All files but the database's."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "hidream.db" not in path.name)


@pytest.mark.parametrize("filename", ["../../evil.png", "/etc/evil.png", "..\\evil.png", "e\0vil.png", "evil.png/.."])
def test_a_files_name_is_no_path(fleet, http, filename):
    before = set(settled_tree(fleet))
    answer = http.post("/api/v3/media/upload/binary", files={"file": (filename, png(8, 8))})
    assert answer.status_code in (200, 400), answer.text
    new = set(tree(fleet.home)) - before
    assert all(re.fullmatch(r"uploads/[\w-]{43}\.png", name) for name in new)
    assert len(new) == (answer.status_code == 200)
    assert not list(fleet.folder.parent.rglob("*evil*"))


def png(width, height, *chunks, rows=None):
    """A black PNG of one bit a pixel, with whatever is put between; its rows may be said to be more than they are."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 7) // 8 + 1) * (height if rows is None else rows), 9)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def of_size(kind, width, height):
    """A file of 8 × 8 pixels that says it has more."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def with_much(kind, beginning):
    """A PNG with a chunk that has a quarter of a GB when it is read."""
    return png(8, 8, (kind, beginning + zlib.compress(bytes(2**28), 9)))


BOMBS = {
    "a gigapixel PNG": lambda: png(40_000, 40_000, rows=20_000),
    "a PNG with the largest sides there are": lambda: png(2**31 - 1, 2**31 - 1, rows=0),
    "a JPEG that says it is large": lambda: of_size("JPEG", 65_000, 65_000),
    "a PNG with a text that unfolds": lambda: with_much(b"zTXt", b"words\0\0"),
    "a PNG with a profile that unfolds": lambda: with_much(b"iCCP", b"name\0\0"),
}
"""Small files that are large when they are read. They are written when their test runs: compressing takes seconds."""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_or_not_unfolded(fleet, http, bomb):
    data = BOMBS[bomb]()
    http.get("/healthz")
    before = peak_bytes(fleet)
    text = "data:image/png;base64," + base64.b64encode(data).decode()
    announced = {"filename": "a.png", "size": len(data), "content_type": "image/png"}
    ticket = http.post("/api/v3/media/uploads", json=announced).json()["data"]
    answers = [
        http.post("/api/v3/media/upload/binary", files={"file": ("a.png", data)}),
        http.post(f"/api/v3/{MODEL}", json={"prompt": "a house", "image": text}),
        http.put(httpx.URL(ticket["upload"]["url"]).path, content=data, headers={"Content-Type": "image/png"}),
    ]
    statuses = {answer.status_code for answer in answers}
    assert statuses <= {200, 204, 400, 413}, [answer.text for answer in answers]
    assert "unfolds" in bomb or statuses <= {400, 413}
    assert peak_bytes(fleet) - before < ROOM_BYTES


def peak_bytes(fleet):
    """The most memory that the API process has had."""
    status = Path(f"/proc/{fleet.apis[0].pid}/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


NO_IMAGES = {
    "page.png": b"<!doctype html><script>alert(1)</script>",
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "archive.jpg": b"PK\x03\x04" + bytes(100),
    "program.webp": b"\x7fELF" + bytes(100),
    "animation.png": b"GIF89a" + bytes(100),
    "empty.png": b"",
    "polyglot.png": b"\x89PNG\r\n\x1a\n<script>alert(1)</script>",
}


@pytest.mark.parametrize("filename", NO_IMAGES)
def test_what_is_no_image_is_not_taken(fleet, http, filename):
    before = settled_tree(fleet)  # bombs that were not unfolded are drawn
    files = {"file": (filename, NO_IMAGES[filename], "image/png")}
    assert http.post("/api/v3/media/upload/binary", files=files).status_code == 400
    assert tree(fleet.home) == before


def test_an_image_that_is_called_otherwise_is_served_as_what_it_is(http):
    files = {"file": ("page.html", png(8, 8), "text/html")}
    sent = http.post("/api/v3/media/upload/binary", files=files).json()["data"]
    answer = http.get(httpx.URL(sent["download_url"]).path)
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        (f"/api/v3/{MODEL}", "application/json"),
        ("/api/v3/predictions", "application/json"),
        ("/v1/images/generations", "application/json"),
        ("/v1/images/edits", "multipart/form-data; boundary=x"),
        ("/api/v3/media/upload/binary", "multipart/form-data; boundary=x"),
    ],
)
def test_a_body_without_end_is_refused_before_its_end_and_not_kept(fleet, http, path, content_type):
    before, sent, answer = peak_bytes(fleet), 0, b""
    url = httpx.URL(fleet.apis[0].url)
    head = [f"POST {path} HTTP/1.1", f"Host: {url.host}", f"Authorization: Bearer {KEY}"]
    head += [f"Content-Type: {content_type}", "Transfer-Encoding: chunked", "", ""]
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall("\r\n".join(head).encode())
        if "form-data" in content_type:  # blanks alone are no form, and a 400 at once
            field = b"image" if "edits" in path else b"file"
            begun = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n' % field
            connection.sendall(b"%x\r\n%s\r\n" % (len(begun), begun))
        with contextlib.suppress(ConnectionError):  # of what comes behind the answer, it reads a part
            while sent < ENDLESS_BYTES:
                connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                sent += 0x10000
                if not answer and select.select([connection], [], [], 0)[0]:
                    answer = connection.recv(65536)
                    answered_at = sent
    assert answer.startswith(b"HTTP/1.1 413"), answer
    assert answered_at < ENDLESS_BYTES / 2
    assert peak_bytes(fleet) - before < ENDLESS_BYTES / 2
    assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"prompt": "a house", "seed": ' + b"9" * 10_000 + b"}",
        b'{"prompt": "a house", "seed": 1e999}',
        b'{"prompt": "a house", "seed": NaN}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a house", "size": "' + b"1" * 5000 + b'*1"}',
        b'{"prompt": "a house", "image": "' + b"=" * 500_000 + b'"}',
        b"\xff\xfe\x00\x00",
        b'{"prompt": "a house", "loras": [' + b"[]," * 100_000 + b"[]]}",
        b'{"prompt": "a house", "num_images": 1000000000}',
    ],
)
def test_json_that_is_meant_to_hurt_is_a_400(http, body):
    answer = http.post(f"/api/v3/{MODEL}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert len(answer.text) < 2000


def test_a_compressed_body_is_not_unfolded(http):
    body = zlib.compress(b'{"prompt": "a house"}' + b" " * 2**26, 9)
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    assert http.post(f"/api/v3/{MODEL}", content=body, headers=headers).status_code == 400
