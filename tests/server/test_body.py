"""Reading a body: its media type, its size, and its JSON."""

import pytest
from starlette.requests import Request

from hidream.errors import BodyTooLarge, InvalidInput
from hidream.server.bodies.body import read_json
from hidream.server.bodies.long_bodies import SHORT_BYTES, is_long

PATH = "/api/v3/wavespeed-ai/hidream-i1-dev"


async def post(open_api, content, content_type="application/json", **server):
    async with open_api(**server) as api:
        headers = api.bearer | ({"Content-Type": content_type} if content_type else {})
        return await api.client.post(PATH, content=content, headers=headers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b'{"prompt": "a"', "the body is not JSON"),
        (b"prompt=a", "the body is not JSON"),
        (b"\xff\xfe\xfd", "the body is not JSON"),
        (b'{"prompt": NaN}', "NaN is not a JSON value"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", "the body is []; accepted: a JSON object"),
        (b'"text"', "the body is 'text'"),
        (b"null", "the body is None"),
    ],
    ids=lambda value: f"{value!r:.30}",
)
async def test_what_is_not_a_json_object_is_a_400(open_api, content, message):
    answer = await post(open_api, content)
    assert answer.status_code == 400
    assert message in answer.json()["message"]


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "json"])
async def test_another_content_type_is_a_400(open_api, content_type):
    answer = await post(open_api, b'{"prompt": "a house"}', content_type)
    assert answer.status_code == 400
    assert "accepted: application/json" in answer.json()["message"]


async def test_parameters_of_the_content_type_are_welcome(open_api):
    assert (await post(open_api, b'{"prompt": "a house"}', "Application/JSON; charset=utf-8")).status_code == 200


async def test_the_largest_body_and_one_byte_more(open_api):
    body = b'{"prompt": "a house"}'
    assert (await post(open_api, body, body_max_bytes=len(body))).status_code == 200
    answer = await post(open_api, body, body_max_bytes=len(body) - 1)
    assert answer.status_code == 413
    assert answer.json()["code"] == 413


async def test_a_body_without_an_announced_length_is_counted_too(open_api):
    async def chunks():
        for _ in range(100):
            yield b" " * 1000

    answer = await post(open_api, chunks(), body_max_bytes=50_000)
    assert answer.status_code == 413


def came(*messages, length=b"20"):
    """A request of which these messages come, one after the other."""
    left = iter(messages)

    async def receive():
        return next(left)

    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    return Request({"type": "http", "headers": headers}, receive)


def piece(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_short_body_may_come_in_pieces():
    request = came(piece(b'{"a"'), {"type": "http.request", "more_body": True}, piece(b": 1}", more=False))
    assert await read_json(request, 1000) == {"a": 1}


async def test_a_short_body_that_ends_early_is_no_body():
    request = came(piece(b'{"a": 1}'), {"type": "http.disconnect"})
    with pytest.raises(InvalidInput, match="ended before its announced length"):
        await read_json(request, 1000)


async def test_a_short_body_is_counted_whatever_it_announces():
    request = came(piece(b" " * 6), piece(b" " * 6), length=b"4")
    with pytest.raises(BodyTooLarge, match="larger than 10 bytes"):
        await read_json(request, 10)


@pytest.mark.parametrize(
    ("headers", "long"),
    [
        ([], False),
        ([(b"content-length", b"%d" % SHORT_BYTES)], False),
        ([(b"content-length", b"%d" % (SHORT_BYTES + 1))], True),
        ([(b"content-length", b"9" * 5000)], True),
        ([(b"content-length", b"-1")], True),
        ([(b"content-length", b"")], True),
        ([(b"host", b"a"), (b"transfer-encoding", b"chunked")], True),
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_a_body_is_long_by_what_its_head_says(headers, long):
    assert is_long({"type": "http", "headers": headers}) is long
