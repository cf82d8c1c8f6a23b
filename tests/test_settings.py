"""Settings: which source wins, and errors that name key, value and what is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from hidream import settings
from hidream.errors import ConfigurationError
from hidream.types import Variant


def test_flag_beats_environment_beats_file_beats_default(tmp_path):
    (tmp_path / "hidream.toml").write_text("[server]\nport = 1\nhost = 'a'\nqueue_max = 5\n")
    environ = {"HIDREAM_HOME": str(tmp_path), "HIDREAM_SERVER_PORT": "2", "HIDREAM_SERVER_HOST": "b"}
    server = settings.load(environ, {"server": {"port": 3}}).server
    assert (server.port, server.host, server.queue_max, server.sync_timeout_s) == (3, "b", 5, 90.0)


def test_model_is_short_for_models_dev(tmp_path):
    environ = {"HIDREAM_HOME": str(tmp_path), "HIDREAM_MODEL": "/one", "HIDREAM_MODELS_DEV": "/two"}
    models = settings.load(environ).models
    assert models.dev == Path("/one")
    assert models.parts(Variant.DEV) == {"folder": Path("/one")}
    with pytest.raises(ConfigurationError, match="fast"):
        models.parts(Variant.FAST)


def test_parts_of_a_model_are_named_one_by_one(tmp_path):
    environ = {"HIDREAM_HOME": str(tmp_path), "HIDREAM_MODEL": "/dev.gguf", "HIDREAM_MODELS_CLIP_L": "/l.safetensors"}
    parts = settings.load(environ).models.parts(Variant.DEV)
    assert parts == {"folder": Path("/dev.gguf"), "clip_l": Path("/l.safetensors")}
    assert settings.load({"HIDREAM_HOME": str(tmp_path)}).models.parts(Variant.DEV) is None


def test_all_state_lies_under_the_home(tmp_path):
    config = settings.load({"HIDREAM_HOME": str(tmp_path)})
    assert str(tmp_path) in config.database_url
    assert config.outputs_dir.is_relative_to(tmp_path)
    assert not any(tmp_path.iterdir())  # reading settings makes nothing


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"HIDREAM_SERVER_PORT": "many"}, "HIDREAM_SERVER_PORT is 'many'; accepted: a whole number"),
        ({"HIDREAM_SERVR_PORT": "1"}, "unknown environment variable HIDREAM_SERVR_PORT"),
        ({"HIDREAM_WORKER_LEASE_S": "soon"}, "HIDREAM_WORKER_LEASE_S is 'soon'; accepted: a number"),
        ({"HIDREAM_CONFIG": "/nowhere.toml"}, "nowhere.toml cannot be read"),
    ],
)
def test_bad_environment_is_named(tmp_path, environ, named):
    with pytest.raises(ConfigurationError, match=named):
        settings.load({"HIDREAM_HOME": str(tmp_path), **environ})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[sever]\n", "unknown table .sever."),
        ("port = 1\n", "unknown table .port."),
        ("[server]\nprt = 1\n", "prt: unknown key; accepted in .server.: host, port"),
        ("[server]\nport = true\n", "port is True; accepted: a whole number"),
        ("[server]\nport = 1.5\n", "port is 1.5"),
        ("[models]\ndev = 3\n", "dev is 3; accepted: a path"),
        ("[server\n", "cannot be read"),
    ],
)
def test_bad_file_is_named(tmp_path, text, named):
    (tmp_path / "hidream.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=named):
        settings.load({"HIDREAM_HOME": str(tmp_path)})
