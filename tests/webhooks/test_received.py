"""`hidream.webhooks.verify`, as a receiver uses it."""

import time

import pytest

import hidream
from hidream.errors import InvalidInput, InvalidSignature
from hidream.webhooks import signature, verify

SECRET = "whsec_" + "5e" * 32
BODY = b'{"id": "6488c275", "status": "completed"}'


def signed(body=BODY, at_s=None):
    return signature.headers(SECRET, "6488c275", round(time.time()) if at_s is None else at_s, body)


def test_it_gives_the_message():
    assert hidream.webhooks.verify is verify
    assert verify(signed(), BODY, SECRET) == {"id": "6488c275", "status": "completed"}
    assert verify(signed(), BODY.decode(), SECRET)["status"] == "completed"


@pytest.mark.parametrize("case", [str.upper, str.title, str.lower])
def test_names_of_headers_have_any_case(case):
    assert verify({case(name): value for name, value in signed().items()}, BODY, SECRET)


def test_what_is_not_genuine_is_refused_with_401():
    for headers, body in (({}, BODY), (signed(), BODY + b" "), (signed(at_s=1), BODY)):
        with pytest.raises(InvalidSignature) as raised:
            verify(headers, body, SECRET)
        assert raised.value.http_status == 401
        assert SECRET not in str(raised.value)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize("value", ["", "\udcff", "ü", "v3,\udcff", "9" * 40])
def test_no_header_breaks_it(name, value):
    with pytest.raises(InvalidSignature):
        verify(signed() | {name: value}, BODY, SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", None])
def test_without_a_secret_nothing_is_verified(secret):
    with pytest.raises(InvalidInput, match="secret is empty"):
        verify(signed(), BODY, secret)


@pytest.mark.parametrize("body", [None, 7, {"id": "6488c275"}])
def test_a_body_that_was_parsed_is_refused(body):
    with pytest.raises(InvalidInput, match="accepted: the bytes exactly as received, not parsed"):
        verify(signed(), body, SECRET)


def test_a_text_that_no_utf_8_is_was_not_signed():
    with pytest.raises(InvalidSignature):
        verify(signed(), "\ud800", SECRET)


def test_no_clock_lets_an_old_message_pass():
    for now_s in (float("nan"), float("inf"), -1, time.time() + 301):
        with pytest.raises(InvalidSignature):
            verify(signed(), BODY, SECRET, now_s)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 10**5])
def test_a_body_that_is_no_object_is_refused_after_it_was_verified(body):
    with pytest.raises(InvalidInput, match="accepted: a JSON object"):
        verify(signed(body), body, SECRET)
