"""JSON in pieces: long texts become files, and the rest equals the result of `json`."""

import json
import tracemalloc
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hidream.errors import BodyTooLarge
from hidream.outputs.folder import Folder
from hidream.outputs.object_store import Namespace
from hidream.server.bodies import long_text
from hidream.server.bodies.long_text import LONG_BYTES, LongText, Splitter


async def split(folder, pieces):
    """Read pieces; the value, with what long texts there are as (their text)."""

    async with AsyncExitStack() as stack:

        async def new():
            part = await stack.enter_async_context(Folder(folder, Namespace.UPLOADS).part())
            return LongText(part, AsyncExitStack())

        splitter = Splitter(new)
        for piece in pieces:
            await splitter.feed(piece)
        value = await splitter.value()
        return read(value), [text.path.read_text() for text in splitter.texts]


def read(value):
    if isinstance(value, LongText):
        return ("long", value.path.read_text())
    if isinstance(value, dict):
        return {name: read(each) for name, each in value.items()}
    return [read(each) for each in value] if isinstance(value, list) else value


def pieces_of(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v)
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(texts, values, max_size=4), st.booleans(), st.integers(1, 9))
async def test_any_json_is_read_as_it_is_however_it_is_cut(tmp_path_factory, value, escaped, size):
    data = json.dumps(value, ensure_ascii=escaped).encode()
    folder = tmp_path_factory.getbasetemp()
    assert await split(folder, pieces_of(data, size)) == (value, [])


@pytest.mark.parametrize("size", [1000, 65_536, 1_000_000])
@pytest.mark.parametrize("escape", ["/", "\\/", "\\u002f"])
async def test_long_texts_are_values_in_files(tmp_path, size, escape):
    long = "ab/d" * (LONG_BYTES // 4 + 100)
    data = json.dumps({"prompt": "a", "image": long, "x": {"mask": long[4:]}, "n": [1, 'q"']}).replace("/", escape)
    value, found = await split(tmp_path, pieces_of(data.encode(), size))
    assert found == [long, long[4:]]
    assert value == {"prompt": "a", "image": ("long", long), "x": {"mask": ("long", long[4:])}, "n": [1, 'q"']}


@pytest.mark.parametrize(
    "data",
    [
        b'{"image":"' + b"a" * 200_000,
        b'{"image":"' + b"a" * 200_000 + b"\\",
        b'{"image":"' + b"a" * 200_000 + b'\n"}',
        b'{"image":"' + b"a" * 200_000 + "é".encode() + b'"}',
        b'{"image":"' + b"a" * 200_000 + b'\\u00e9"}',
        b'{"image":"' + b"a" * 200_000 + b'\\x      "}',
        b'{"image":"' + b"a" * 200_000 + b'"} 7',
        b'{"prompt":"\\uZZZZ  "}',
        b'{"a":NaN}',
        b'{"x":' + b"[" * 1500 + b"]" * 1500 + b"}",
    ],
)
async def test_what_is_no_json_is_none_in_pieces_either(tmp_path, data):
    with pytest.raises(ValueError, match=r"\w"):
        await split(tmp_path, pieces_of(data, 5000))


@pytest.mark.parametrize(
    "data",
    [
        b'{"x":[' + b"1," * (long_text.VALUES_MAX + 1) + b"1]}",
        b'{"x":' + b" " * 300_000 + b"1}",
        b'{"x":1.' + b"1" * 300_000 + b"}",
        b'{"' + b"a" * 300_000 + b'":1}',
        b'{"x":["' + b"a" * 300_000 + b'"]}',
    ],
    ids=["values", "blanks", "number", "name", "in a list"],
)
async def test_what_is_long_without_a_long_value_is_too_large(tmp_path, data):
    with pytest.raises(BodyTooLarge, match="the body has more than"):
        await split(tmp_path, pieces_of(data, 65_536))


async def test_a_body_has_four_long_texts_at_most(tmp_path):
    many = [json.dumps({f"a{i}": "A" * (LONG_BYTES + 1) for i in range(count)}).encode() for count in (4, 126)]
    assert len((await split(tmp_path, pieces_of(many[0], 65_536)))[1]) == 4
    with pytest.raises(BodyTooLarge, match="more than 4 texts of over 131072 bytes, which only images are"):
        await split(tmp_path, pieces_of(many[1], 65_536))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


async def test_a_client_cannot_name_the_files_of_others(tmp_path):
    value, _ = await split(tmp_path, [b'{"image":"' + b"a" * 200_000 + b'","x":{"0":0}}'])
    assert value["x"] == {"0": 0}


async def test_memory_does_not_grow_with_the_text(tmp_path):
    piece = b"a" * 65_536
    tracemalloc.start()
    split_only = pieces = [b'{"image":"', *[piece] * 200, b'"}']
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()

    async with Folder(tmp_path, Namespace.UPLOADS).part() as part:

        async def new():
            return LongText(part, AsyncExitStack())

        splitter = Splitter(new)
        for each in split_only:
            await splitter.feed(each)
        await splitter.value()
        assert part.size_bytes == 200 * len(piece)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 2_000_000, pieces[:1]
