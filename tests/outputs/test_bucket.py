"""A bucket of a real S3 server: signatures, headers, and a store that is unreachable, hangs, fails or refuses."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from hidream.errors import ConfigurationError, NotFound, ObjectStoreUnavailable
from hidream.file_names import random_name
from hidream.outputs.bucket import SIGNED_MAX_S, Bucket
from hidream.outputs.object_store import Namespace
from hidream.types import ImageFormat
from s3_server import BUCKET, SECRET, S3Server

NAME, OTHER = (random_name(ImageFormat.WEBP) for _ in range(2))
QUICK_S = 1.2


def bucket(access, prefix="test", name=BUCKET):
    return Bucket(name, prefix, Namespace.OUTPUTS, access)


async def all_names(place):
    return [name async for name in place.names(datetime.now(UTC) + timedelta(days=1))]


def calls(place):
    """Every call to a store, by its name."""
    return {
        "write": lambda: place.write(NAME, b"data"),
        "read": lambda: place.read(NAME),
        "about": lambda: place.metadata(NAME),
        "open": lambda: place.open(NAME),
        "delete": lambda: place.delete([NAME]),
        "names": lambda: all_names(place),
        "check": lambda: place.check(),
    }


@pytest.fixture
def own_s3(tmp_path):
    """A server that a test may treat badly."""
    with S3Server(tmp_path / "own") as server:
        yield server


@pytest.fixture
def failing():
    """Open a server that gives these answers, the last one for ever: its endpoint, and the methods it was asked for."""

    @asynccontextmanager
    async def failing(answers):
        seen = []

        async def respond(reader, writer):
            request = await reader.readuntil(b"\r\n\r\n")
            writer.write(answers[min(len(seen), len(answers) - 1)])
            seen.append(request.partition(b" ")[0].decode())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen

    return failing


def response(status, body=""):
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def test_an_object_lies_under_prefix_and_namespace(s3):
    await bucket(s3.access(), "some/where").write(NAME, b"data")
    await bucket(s3.access(), "").write(NAME, b"data")
    assert (s3.objects / "some" / "where" / "outputs" / NAME).read_bytes() == b"data"
    assert (s3.objects / "outputs" / NAME).read_bytes() == b"data"


async def test_a_signed_url_is_good_for_its_object_alone_and_not_for_ever(s3):
    place = bucket(s3.access(signed_urls=True))

    await place.write(NAME, b"an image")
    await place.write(OTHER, b"another")
    url, brief = await place.url(NAME, "https://us.example", 60), await place.url(NAME, "https://us.example", 0.5)
    async with httpx.AsyncClient() as client:
        answer = await client.get(url)
        assert answer.status_code == 200
        assert answer.content == b"an image"
        assert answer.headers["content-type"] == "image/webp"
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        for wrong in (url.replace(NAME, OTHER), url[:-1] + ("1" if url[-1] == "0" else "0")):
            assert (await client.get(wrong)).status_code == 403
        assert (await client.put(url, content=b"mine now")).status_code == 403
        await asyncio.sleep(2.1)
        assert (await client.get(brief)).status_code in (400, 403)  # rclone, AWS
    assert SECRET not in url


async def test_a_signed_url_is_valid_as_long_as_s3_allows_and_names_the_public_endpoint(s3):
    place = bucket(s3.access(signed_urls=True, public_endpoint="https://pictures.example:444"))
    for valid_s, signed_s in ((60, 60), (1e9, SIGNED_MAX_S)):
        url = urlsplit(await place.url(NAME, "https://us.example", valid_s))
        assert (url.scheme, url.netloc) == ("https", "pictures.example:444")
        assert url.path == f"/{BUCKET}/test/outputs/{NAME}"
        assert parse_qs(url.query)["X-Amz-Expires"] == [str(signed_s)]


async def errors_of(place):
    """Make every call at once; give the message of each, and how long the slowest took."""
    begun = time.monotonic()
    results = await asyncio.gather(*(call() for call in calls(place).values()), return_exceptions=True)
    took_s = time.monotonic() - begun
    assert [type(result) for result in results] == [ObjectStoreUnavailable] * len(results), results
    return dict(zip(calls(place), [result.message for result in results], strict=True)), took_s


@pytest.mark.integration
async def test_a_store_that_is_away_and_comes_back(own_s3):
    place = bucket(own_s3.access())
    await place.write(NAME, b"data")
    own_s3.stop()
    messages, took_s = await errors_of(place)
    assert took_s < own_s3.access().timeout_s / 3, "it was not waited for"
    for message in messages.values():
        assert "the store cannot be reached; try again later" in message
    own_s3.start()
    assert await place.read(NAME) == b"data"


@pytest.mark.integration
async def test_a_store_that_hangs_costs_no_more_than_the_timeout(own_s3):
    place = bucket(own_s3.access(timeout_s=QUICK_S))

    own_s3.pause()
    messages, took_s = await errors_of(place)
    assert took_s < QUICK_S + 3
    for message in messages.values():
        assert "the store does not answer in time" in message
    own_s3.go_on()  # and do what nobody waits for any more
    patient = bucket(own_s3.access())
    await patient.write(OTHER, b"data")
    assert await patient.read(OTHER) == b"data"


@pytest.mark.integration
async def test_a_store_that_hangs_in_the_middle_of_a_file(own_s3):
    place, data = bucket(own_s3.access(timeout_s=QUICK_S)), bytes(50_000_000)

    await bucket(own_s3.access()).write(NAME, data)
    metadata, chunks = await place.open(NAME)
    stretch = chunks(0, metadata.size_bytes)
    await anext(stretch)
    own_s3.pause()
    begun = time.monotonic()
    with pytest.raises(ObjectStoreUnavailable):
        [chunk async for chunk in stretch]
    assert time.monotonic() - begun < QUICK_S + 3
    own_s3.go_on()


@pytest.mark.integration
async def test_a_slow_reader_gets_a_file_whole(own_s3):
    place, data = bucket(own_s3.access(timeout_s=QUICK_S)), bytes(range(250)) * 40_000

    await bucket(own_s3.access()).write(NAME, data)
    metadata, chunks = await place.open(NAME)
    read = b""
    async for chunk in chunks(0, metadata.size_bytes):
        await asyncio.sleep(1.5 * QUICK_S if not read else 0)  # longer than any call may take
        read += chunk
    assert read == data


async def test_a_store_that_fails_for_a_moment_is_not_noticed(s3, failing):
    answers = [response("503 Slow Down"), response("500 Internal Server Error"), response('200 OK\r\nETag: "x"')]
    async with failing(answers) as (endpoint, seen):
        await bucket(s3.access(endpoint=endpoint)).write(NAME, b"data")
    assert seen == ["PUT"] * 3


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Slow Down", "429 Too Many Requests"])
async def test_a_store_that_fails(s3, failing, status):
    async with failing([response(status, "<Error><Code>SlowDown</Code></Error>")]) as (endpoint, seen):
        messages, _ = await errors_of(bucket(s3.access(endpoint=endpoint)))
        for what, message in messages.items():
            code = "" if what == "about" else " SlowDown"  # the answer to a HEAD has no text
            assert f"the store answers {status[:3]}{code}; try again later" in message
    assert seen.count("PUT") > 2, "each was asked again"


async def test_an_answer_that_is_cut_off_is_never_a_shorter_file(s3, failing):
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nLast-Modified: Mon, 23 Nov 2026 03:44:52 GMT\r\n\r\nonly this"

    async with failing([cut]) as (endpoint, _):
        place = bucket(s3.access(endpoint=endpoint, timeout_s=QUICK_S))
        with pytest.raises(ObjectStoreUnavailable):
            await place.read(NAME)
        metadata, chunks = await place.open(NAME)
        with pytest.raises(ObjectStoreUnavailable):
            [chunk async for chunk in chunks(0, metadata.size_bytes)]


async def test_errors_do_not_say_endpoint_key_or_name(s3, own_s3):
    wrong = bucket(replace(s3.access(), secret_access_key="wrong"))
    own_s3.stop()
    away = bucket(own_s3.access(timeout_s=QUICK_S))

    for place in (wrong, away):
        results = await asyncio.gather(*(call() for call in calls(place).values()), return_exceptions=True)
        for secret in (NAME, "127.0.0.1", "test-key-id", "wrong", SECRET):
            assert not [result.message for result in results if secret in result.message]
    assert SECRET not in repr(s3.access())


async def test_a_store_that_says_no_is_said_at_the_start(s3):
    refused = {
        "403 SignatureDoesNotMatch": bucket(replace(s3.access(), secret_access_key="wrong")),
        "403 InvalidAccessKeyId": bucket(replace(s3.access(), access_key_id="wrong")),
        "404 NoSuchBucket": bucket(s3.access(), name="no-such-bucket"),
    }
    for reason, place in refused.items():
        with pytest.raises(ConfigurationError, match=f"answers {reason}; accepted: a bucket that exists"):
            await place.check()
        with pytest.raises(ObjectStoreUnavailable, match=reason):
            await place.write(NAME, b"data")


async def test_a_bucket_that_is_not_there_is_no_missing_file(s3):
    with pytest.raises(ObjectStoreUnavailable, match="404 NoSuchBucket"):
        await bucket(s3.access(), name="no-such-bucket").read(NAME)


async def test_given_access_is_stronger_than_the_environment(s3, monkeypatch):
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "wrong")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    place = bucket(s3.access(signed_urls=True))
    await place.check()
    assert "wrong" not in await place.url(NAME, "", 60)


async def test_what_is_not_given_is_taken_from_the_environment(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access().access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    await bucket(replace(s3.access(), endpoint=None, access_key_id=None, secret_access_key=None)).check()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"endpoint": "127.0.0.1:9000"}, "endpoint is '127.0.0.1:9000'; accepted: a URL with http"),
        ({"public_endpoint": "ftp://x"}, "public endpoint is 'ftp://x'"),
        ({"secret_access_key": None}, "secret access key is set; accepted: both, or none"),
        ({"access_key_id": ""}, "secret access key is set; accepted: both, or none"),
        ({"timeout_s": 0}, "timeout is 0 s; accepted: more than 0"),
    ],
)
def test_access_that_cannot_be_right(s3, wrong, named):
    with pytest.raises(ConfigurationError, match=named):
        bucket(s3.access(**wrong))


async def test_a_foreign_object_is_left_alone(s3):
    place = bucket(s3.access(), "shared")
    folder = s3.objects / "shared" / "outputs"
    folder.mkdir(parents=True)
    (folder / "README").write_text("mine")
    (folder / "deeper").mkdir()
    (folder / "deeper" / NAME).write_text("mine")

    await place.write(NAME, b"ours")
    assert await all_names(place) == [NAME]
    await place.delete([NAME])
    with pytest.raises(NotFound):
        await place.read(NAME)
    assert (folder / "README").exists()
    assert (folder / "deeper" / NAME).exists()
