"""Forbids unit tests to start a process, or to open a socket to anything but this process's own files.

Python tells its audit hooks of both before it does them (PEP 578). A hook cannot be taken away, so it is switched.
"""

import contextlib
import socket
import sys

import pytest

PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
SOCKETS = {"socket.bind", "socket.connect"}


class Guard:
    """Refuses while it watches; `refused` is what was wanted, in other threads too, whose errors nobody may see."""

    def __init__(self):
        self.watching, self.refused = False, []
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def watch(self):
        self.watching, self.refused = True, []
        try:
            yield
        finally:
            self.watching = False
        self._say()

    def _hear(self, event, arguments):
        if self.watching and (event in PROCESSES or (event in SOCKETS and arguments[0].family != socket.AF_UNIX)):
            self.refused.append(f"{event} {arguments[1:2] or ''}")
            self._say()

    def _say(self):
        if self.refused:
            pytest.fail(f"only tests marked `integration` start processes or open sockets: {', '.join(self.refused)}")
