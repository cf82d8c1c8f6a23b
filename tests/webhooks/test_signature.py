"""The signature: the documented algorithm, and what a receiver refuses."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hidream.errors import InvalidSignature
from hidream.webhooks import received, signature

SECRET = "whsec_" + "5e" * 32
NOW_S = 1_763_856_000


def signed(body=b"{}", at_s=NOW_S):
    return signature.headers(SECRET, "6488c275", at_s, body)


def genuine(secret, headers, body, now_s):
    try:
        received.check(headers, body, secret, now_s)
    except InvalidSignature:
        return False
    return True


def test_it_is_the_documented_algorithm():
    digest = hmac.new(b"5e" * 32, b'6488c275.1763856000.{"id":1}', hashlib.sha256).hexdigest()
    assert signed(b'{"id":1}') == {
        "webhook-id": "6488c275",
        "webhook-timestamp": "1763856000",
        "webhook-signature": f"v3,{digest}",
    }


def test_the_key_is_the_secret_without_its_prefix_and_not_decoded():
    assert signature.sign(SECRET, "a", 1, b"") == signature.sign(SECRET.removeprefix("whsec_"), "a", 1, b"")
    assert signature.sign("SECRET", "a", 1, b"") != signature.sign("secret", "a", 1, b"")


def test_secrets_are_long_and_never_the_same():
    secrets = {signature.new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith("whsec_") and len(secret) == 70 for secret in secrets)


@given(st.binary(max_size=200), st.text("0123456789abcdef", min_size=32, max_size=32))
def test_what_was_signed_is_verified(body, name):
    headers = signature.headers(SECRET, name, NOW_S, body)
    assert genuine(SECRET, headers, body, NOW_S)
    assert not genuine(SECRET, headers, body + b" ", NOW_S)
    assert not genuine(signature.new_secret(), headers, body, NOW_S)


def test_while_secrets_are_rotated_each_signs_in_a_header_of_its_own():
    new = signature.new_secret()
    headers = signature.headers(SECRET, "6488c275", NOW_S, b"{}", new)
    assert {name: value for name, value in headers.items() if name != signature.NEXT} == signed()
    assert headers["webhook-signature-next"] == signature.sign(new, "6488c275", NOW_S, b"{}")
    assert genuine(SECRET, headers, b"{}", NOW_S)
    assert genuine(new, headers, b"{}", NOW_S)
    assert not genuine(signature.new_secret(), headers, b"{}", NOW_S)


@pytest.mark.parametrize("late_s", [-300, 0, 300])
def test_a_timestamp_may_lie_300_seconds_off(late_s):
    assert genuine(SECRET, signed(), b"{}", NOW_S + late_s)
    assert not genuine(SECRET, signed(), b"{}", NOW_S + late_s + (0.5 if late_s > 0 else -301))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", "6488c276"),
        ("webhook-timestamp", "1763856001"),
        ("webhook-timestamp", "01763856000"),
        ("webhook-timestamp", "１763856000"),
        ("webhook-timestamp", "-1"),
        ("webhook-timestamp", "soon"),
        ("webhook-signature", "v3," + "0" * 64),
        ("webhook-signature", "v3,é"),
        ("webhook-signature", ""),
    ],
)
def test_a_header_that_was_changed_is_refused(name, value):
    assert genuine(SECRET, signed(), b"{}", NOW_S)
    assert not genuine(SECRET, signed() | {name: value}, b"{}", NOW_S)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_header_that_is_absent_is_refused(name):
    headers = signed()
    del headers[name]
    assert not genuine(SECRET, headers, b"{}", NOW_S)


def test_nothing_is_signed_without_a_secret():
    with pytest.raises(AssertionError, match="an empty secret"):
        signature.sign("whsec_", "a", 1, b"")
