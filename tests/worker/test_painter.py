"""The engine that other tests use reports its work like the real one; `interfaces.py` compares the rest."""

import dataclasses

import painter
import pytest

from hidream.engine import loop
from hidream.model.pipeline import GeneratedImage


@pytest.mark.parametrize("real", [loop.Outcome, GeneratedImage])
def test_its_records_have_the_fields_of_the_engines(real):
    mine = getattr(painter, real.__name__)
    assert [field.name for field in dataclasses.fields(mine)] == [field.name for field in dataclasses.fields(real)]
