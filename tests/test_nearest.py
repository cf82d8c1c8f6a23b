"""The name that was probably meant."""

import pytest

from hidream.nearest import nearest

KNOWN = {"port": "[server] port", "host": "[server] host", "lease_s": "[worker] lease_s"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [("prt", "[server] port"), ("PORT", "[server] port"), ("hots", "[server] host"), ("lease", "[worker] lease_s")],
)
def test_the_nearest_is_named(name, meant):
    assert nearest(name, KNOWN) == f"; the nearest is {meant}"


@pytest.mark.parametrize("name", ["", "x", "prompt_checker"])
def test_what_is_like_nothing_has_none(name):
    assert nearest(name, KNOWN) == ""
