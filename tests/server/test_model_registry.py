"""Which models are served."""

from pathlib import Path

import pytest

from hidream.errors import NotFound
from hidream.server.model_registry import find, served
from hidream.settings.tables import Models
from hidream.types import Variant

DEV, FULL, FAST = (f"wavespeed-ai/hidream-i1-{variant}" for variant in Variant)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (Models(), {DEV: Variant.DEV, FULL: Variant.FULL, FAST: Variant.FAST}),
        (Models(fast=Path("fast")), {FAST: Variant.FAST}),
        (Models(dev=Path("dev"), full=Path("full")), {DEV: Variant.DEV, FULL: Variant.FULL}),
        (Models(loras=Path("loras")), {DEV: Variant.DEV, FULL: Variant.FULL, FAST: Variant.FAST}),
    ],
)
def test_what_is_configured_is_served_or_what_is_embedded(models, expected):
    assert served(models) == expected


def test_a_model_by_its_name():
    models = served(Models())
    assert find(models, DEV) == find(models, "hidream-i1-dev") == DEV
    for name in ("hidream-i1-pro", "", None, 5, ["a"], "wavespeed-ai/"):
        with pytest.raises(NotFound, match=f"there are: {DEV}"):
            find(models, name)
