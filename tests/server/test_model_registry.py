"""Which models are served."""

from pathlib import Path

import pytest

from hidream.errors import ConfigurationError, NotFound
from hidream.server.model_registry import aliases, find, served
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


def test_aliases_of_models():
    models = served(Models(dev=Path("dev"), full=Path("full")))
    assert aliases("", models) == {}
    assert aliases("gpt-image-1 = hidream-i1-dev,dall-e-3=" + FULL, models) == {"gpt-image-1": DEV, "dall-e-3": FULL}
    assert find(models, "a/b", {"a/b": FULL}) == FULL
    with pytest.raises(NotFound, match=f"{FULL}, a/b"):
        find(models, ["a/b"], {"a/b": FULL})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("gpt-image-1=hidream-i1-fast", "gpt-image-1 stands for hidream-i1-fast, which is not served; accepted: w"),
        ("a=hidream-i1-dev, a=hidream-i1-full", "a is there twice"),
        ("hidream-i1-full=hidream-i1-dev", "hidream-i1-full is the name of a model"),
        (f"{FAST}=hidream-i1-dev", f"{FAST} is the name of a model"),
    ],
)
def test_an_alias_that_is_not_accepted(setting, message):
    models = served(Models(dev=Path("dev"), full=Path("full")))
    with pytest.raises(ConfigurationError, match=r"^\[server\] model_aliases: " + message):
        aliases(setting, models)
