"""Base64 in pieces decodes to the same as base64 at once."""

import base64
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hidream.errors import InvalidInput
from hidream.server.bodies.base64_text import decode


def decoded(pieces, max_bytes=10_000):
    data = bytearray()
    decode("image", repr("".join(pieces)[:100]), pieces, data.extend, max_bytes)
    return bytes(data)


def cut(text, places):
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(ends)] or [""]


@given(st.binary(max_size=200), st.lists(st.integers(0, 1000)), st.sampled_from(["", "data:image/png;base64,"]))
def test_it_may_be_cut_anywhere(data, places, prefix):
    text = base64.b64encode(data).decode()
    if prefix:
        text = text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    first, *others = cut(text, places)  # a piece is longer than a head
    assert decoded([prefix + first, *others]) == data


@pytest.mark.parametrize(
    ("pieces", "wrong"),
    [
        (["aGVs", "bG8$="], "with '$' at 7"),
        (["aGV=", "sbG8"], "with '=' at 3"),
        (["aGVs\n", "bG8", "a", "aa", "é"], "with 'é' at 11"),
        (["data:;base64,aG", "Vs", ".G8="], "with '.' at 17"),
        (["aGVsb"], "ends within a byte, after 5 digits"),
        (["aG", "Vsb"], "ends within a byte, after 5 digits"),
        (["data:;base64,aGVs", "bG8%2"], "with '%' at"),
        (["data:image/png,", "aGVs"], "a data: URI without ;base64"),
    ],
)
def test_what_is_wrong_is_where_it_is(pieces, wrong):
    with pytest.raises(InvalidInput) as raised:
        decoded(pieces)
    assert wrong in raised.value.message


def test_what_is_too_long_is_counted_and_not_written():
    written = []
    with pytest.raises(InvalidInput, match="image has 300 bytes; accepted: up to 100"):
        decode("image", "''", ["AAAA" * 10] * 10, written.append, 100)
    assert sum(map(len, written)) <= 100
