"""The shortcut for plain ASCII, which most prompts are: the same reading."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hidream.safety.spelling import latin, native, readings

ASCII = "".join(map(chr, range(128)))


@pytest.mark.parametrize("form", [native, latin])
@given(text=st.text(ASCII))
def test_ascii_is_read_as_it_is_beside_other_letters(form, text):
    assert form(text + "é") == form(text) + "e"


@pytest.mark.parametrize("form", [native, latin])
def test_each_ascii_character_is_read_so(form):
    assert form(ASCII + "é") == form(ASCII) + "e"
    assert set(form(ASCII)) == set(ASCII) - set(string.ascii_uppercase)


def test_readings_that_are_the_same_are_given_once():
    assert list(readings("a red fox")) == [["a", "red", "fox"]]
    assert len(list(readings("r3d f0x"))) == 2
