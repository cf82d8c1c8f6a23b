"""The guard itself: what it refuses and what it allows."""

import socket
import subprocess
import sys
import threading

import pytest

from guard import Guard

REFUSED = pytest.fail.Exception
pytestmark = [
    pytest.mark.integration,  # the guard of the whole run is not asked
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of a socket that was never bound
]


def start():
    subprocess.run([sys.executable, "--version"], check=True, capture_output=True)


def listen():
    socket.create_server(("127.0.0.1", 0)).close()


def reach():
    with socket.socket() as one:
        one.connect_ex(("127.0.0.1", 9))


@pytest.mark.parametrize("attempt", [start, listen, reach])
def test_a_process_and_a_socket_are_refused_while_it_watches(attempt):
    guard = Guard()
    with pytest.raises(REFUSED, match="only tests marked `integration`"), guard.watch():
        attempt()
    attempt()


def test_what_another_thread_tries_or_what_is_caught_fails_the_test_in_the_end():
    def caught():
        with pytest.raises(REFUSED):
            listen()

    with pytest.raises(REFUSED, match=r"socket\.bind"), Guard().watch():
        thread = threading.Thread(target=caught)
        thread.start()
        thread.join()


def test_sockets_within_the_process_and_files_are_let_be(tmp_path):
    with Guard().watch():
        for end in socket.socketpair():
            end.close()
        with socket.socket(socket.AF_UNIX) as here:
            here.bind(str(tmp_path / "socket"))
        (tmp_path / "file").write_text("x")
