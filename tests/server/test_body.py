"""Reading a body: the type it must say, the size it may have, and the JSON it must be."""

import pytest

PATH = "/api/v3/wavespeed-ai/hidream-i1-dev"


def post(with_api, content, content_type="application/json", **server):
    async def scenario(api):
        headers = api.bearer | ({"Content-Type": content_type} if content_type else {})
        return await api.client.post(PATH, content=content, headers=headers)

    return with_api(scenario, **server)


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
def test_what_is_not_a_json_object_is_a_400(with_api, content, message):
    answer = post(with_api, content)
    assert answer.status_code == 400
    assert message in answer.json()["message"]


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "json"])
def test_another_content_type_is_a_400(with_api, content_type):
    answer = post(with_api, b'{"prompt": "a house"}', content_type)
    assert answer.status_code == 400
    assert "accepted: application/json" in answer.json()["message"]


def test_parameters_of_the_content_type_are_welcome(with_api):
    assert post(with_api, b'{"prompt": "a house"}', "Application/JSON; charset=utf-8").status_code == 200


def test_the_largest_body_and_one_byte_more(with_api):
    body = b'{"prompt": "a house"}'
    assert post(with_api, body, body_max_bytes=len(body)).status_code == 200
    answer = post(with_api, body, body_max_bytes=len(body) - 1)
    assert answer.status_code == 413
    assert answer.json()["code"] == 413


def test_a_body_without_an_announced_length_is_counted_too(with_api):
    async def chunks():
        for _ in range(100):
            yield b" " * 1000

    answer = post(with_api, chunks(), body_max_bytes=50_000)
    assert answer.status_code == 413
