"""The process: a start that is hopeless says so in its exit status."""

import logging

import pytest

from hidream.errors import ConfigurationError
from hidream.settings import Compute, Models, Settings
from hidream.worker.main import run


@pytest.mark.parametrize("wrong", ["checkpoint", "memory"])
def test_a_start_that_is_hopeless_says_why(tmp_path, caplog, wrong):
    nothing = tmp_path / "nothing"
    settings, said = {
        "checkpoint": (Settings(home=tmp_path, models=Models(dev=nothing)), str(nothing)),
        "memory": (Settings(home=tmp_path, compute=Compute(device="cpu", memory_gb=2.0)), "memory_gb is 2"),
    }[wrong]
    with caplog.at_level(logging.ERROR):
        assert run(settings, with_parent=False) == ConfigurationError.exit_status
    assert said in caplog.text
