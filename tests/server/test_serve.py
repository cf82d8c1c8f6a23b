"""The server process: a port that is taken is an error that names it."""

import socket

import pytest

from hidream.errors import ConfigurationError
from hidream.server.serve import run
from hidream.settings import Server, Settings


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1, port {port}"):
            run(Settings(home=tmp_path, server=Server(port=port)))
