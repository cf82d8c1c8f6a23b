"""Downloads over HTTP from both kinds of object store, through a real server on a real socket."""

import asyncio
import threading

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from hidream.errors import NotFound, ObjectStoreUnavailable
from hidream.file_names import MEDIA_TYPES, random_name
from hidream.outputs.folder import Folder
from hidream.outputs.location import open_object_store
from hidream.outputs.object_store import CHUNK_BYTES, Namespace
from hidream.outputs.serving import serve
from hidream.types import ImageFormat

pytestmark = pytest.mark.integration

NAMES = [random_name(image_format) for image_format in ImageFormat]
NAME = NAMES[0]
DATA = bytes(range(251)) * (2 * CHUNK_BYTES // 251 + 100)
SIZE = len(DATA)


class Downloads:
    """A server that serves `place`, as the routes do, and a client of it."""

    def __init__(self):
        self.place = None
        config = uvicorn.Config(Starlette(routes=[Route("/{name}", self._answer)]), port=0, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        return self

    def __exit__(self, *_):
        self.http.close()
        self.server.should_exit = True
        self.thread.join()

    def get(self, name=NAME, method="GET", **headers):
        return self.http.request(method, f"/{name}", headers={key.replace("_", "-"): headers[key] for key in headers})

    async def _answer(self, request):
        try:
            served = await serve(self.place, request.path_params["name"], request.method, request.headers)
        except (NotFound, ObjectStoreUnavailable) as error:
            return Response(error.message, error.http_status)
        return StreamingResponse(served.body, served.status, served.headers)


@pytest.fixture(scope="module")
def server():
    with Downloads() as downloads:
        yield downloads


@pytest.fixture
def downloads(server, place):
    asyncio.run(place.write(NAME, DATA))
    server.place = place
    return server


async def test_a_whole_file_with_its_headers(downloads, place):
    for name in NAMES:
        await place.write(name, DATA)
        answer = downloads.get(name)
        assert answer.status_code == 200
        assert answer.content == DATA
        assert answer.headers["content-type"] == MEDIA_TYPES[ImageFormat(name.partition(".")[2])]
        assert answer.headers["content-length"] == str(SIZE)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["accept-ranges"] == "bytes"


def test_head_says_what_get_would_and_ignores_ranges(downloads):
    whole, head = downloads.get(), downloads.get(method="HEAD", Range="bytes=0-9")
    assert head.status_code == 200
    assert head.content == b""
    assert {**head.headers, "date": ""} == {**whole.headers, "date": ""}


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=0-0", 0, 1),
        ("BYTES= 10 - 19", 10, 20),
        ("bytes=10-", 10, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        (f"bytes=-{SIZE + 100}", 0, SIZE),
        (f"bytes=5-{SIZE + 100}", 5, SIZE),
        (f"bytes={CHUNK_BYTES - 2}-{CHUNK_BYTES + 2}", CHUNK_BYTES - 2, CHUNK_BYTES + 3),
        (f"bytes={SIZE - 1}-999999999999999999", SIZE - 1, SIZE),
    ],
)
def test_a_range(downloads, asked, start, stop):
    answer = downloads.get(Range=asked)
    assert answer.status_code == 206
    assert answer.content == DATA[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
def test_a_range_beyond_the_end(downloads, asked):
    answer = downloads.get(Range=asked)
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"
    assert answer.content == b""


@pytest.mark.parametrize(
    "asked", ["bytes=-", "bytes=9-5", "bytes=0-1,5-6", "bytes=a-b", "pages=0-1", "bytes", "bytes=" + "9" * 5000 + "-"]
)
def test_what_is_not_understood_is_answered_whole(downloads, asked):
    answer = downloads.get(Range=asked)
    assert answer.status_code == 200
    assert answer.content == DATA


def test_who_has_it_gets_nothing(downloads):
    etag = downloads.get(method="HEAD").headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = downloads.get(If_None_Match=known, Range="bytes=0-1")
        assert answer.status_code == 304
        assert answer.content == b""
        assert answer.headers["etag"] == etag
    assert downloads.get(If_None_Match='"other"').status_code == 200


async def test_a_range_of_what_has_changed_is_answered_whole(downloads, place):
    seen = downloads.get(method="HEAD").headers
    for same in (seen["etag"], seen["last-modified"]):
        assert downloads.get(Range="bytes=0-4", If_Range=same).status_code == 206
    changed = DATA[:0:-1]  # shorter, too: a folder's clock may not have moved since
    await place.write(NAME, changed)
    answer = downloads.get(Range="bytes=0-4", If_Range=seen["etag"])
    assert answer.status_code == 200
    assert answer.content == changed


def test_what_is_not_there(downloads, place):
    for method in ("GET", "HEAD"):
        assert downloads.get(NAMES[1][::-1], method).status_code == 404
        assert downloads.get(random_name(ImageFormat.PNG), method).status_code == 404


def test_a_client_that_goes_away_does_no_harm(downloads):
    for _ in range(5):
        with downloads.http.stream("GET", f"/{NAME}") as answer:
            next(answer.iter_raw(1000))
    assert downloads.get().content == DATA


def test_a_place_that_is_away_is_an_error_and_no_half_answer(server, s3):
    server.place = open_object_store(s3.url(), Namespace.OUTPUTS, s3.access(endpoint="http://127.0.0.1:9", timeout_s=1))
    for method in ("GET", "HEAD"):
        assert server.get(method=method).status_code == 503


def test_what_is_there_but_cannot_be_read_is_an_error_and_no_half_answer(server, tmp_path):
    server.place = Folder(tmp_path, Namespace.OUTPUTS)
    (server.place.path / NAME).mkdir(parents=True)  # a folder where a file should be
    answer = server.get()
    assert answer.status_code == 503
    assert answer.text == "a file cannot be read now: Is a directory; try again later"
