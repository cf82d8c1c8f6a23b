"""The process: a start that is hopeless says so in its exit status."""

import logging

from hidream.errors import ConfigurationError
from hidream.settings import Models, Settings
from hidream.worker.main import run


def test_a_folder_that_is_no_checkpoint_is_hopeless(tmp_path, caplog):
    settings = Settings(home=tmp_path, models=Models(dev=tmp_path / "nothing"))
    with caplog.at_level(logging.ERROR):
        assert run(settings, with_parent=False) == ConfigurationError.exit_status
    assert str(tmp_path / "nothing") in caplog.text
