"""The pace at which a client reads its responses: how far it is behind the rates that the server requires.

What the client's kernel has acknowledged counts as read. Bytes in this machine's send buffer, up to megabytes, do not.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    from hidream.server.edge.connections import Timeouts


class ReadingPace:
    """The pace of one client. `late_s`: how many seconds it is behind `crowded_rate`; negative if it is ahead."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.late_s = 0.0
        self._timeouts = timeouts
        self._behind_s = 0.0  # the same for `reading_rate`
        self._read_bytes = 0  # bytes of responses that the client had acknowledged at the last look

    def is_too_slow(self, written_bytes: int, unsent_bytes: int, client: socket.socket) -> bool:
        """Look again, after `tick_s`, and return whether the client reads too slowly.

        `written_bytes` is the size of all responses so far, of which the kernel has not accepted `unsent_bytes` yet.
        """
        timeouts, before = self._timeouts, self._read_bytes
        self._read_bytes = written_bytes - unsent_bytes - (_unacknowledged_bytes(client) if unsent_bytes else 0)
        if not unsent_bytes:
            self._behind_s = self.late_s = 0.0
            return False
        read = max(
            0, self._read_bytes - before
        )  # negative if the kernel still had an earlier response at the last look
        behind_s = self._behind_s + timeouts.tick_s - read / timeouts.reading_rate
        late_s = self.late_s + timeouts.tick_s - read / timeouts.crowded_rate
        self._behind_s = max(-timeouts.reading_ahead_s, behind_s)
        self.late_s = max(-timeouts.crowded_grace_s, late_s)
        return self._behind_s > timeouts.reading_grace_s


def _unacknowledged_bytes(client: socket.socket) -> int:
    """Bytes in the kernel's send buffer that the client has not acknowledged; 0 if the system does not tell."""
    with contextlib.suppress(OSError):
        found = fcntl.ioctl(client.fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(found, sys.byteorder)
    return 0
