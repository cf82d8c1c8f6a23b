"""Measurements in a process of their own, whose memory is nobody else's.

Peaks are `VmHWM` and not `ru_maxrss`: Linux hands the latter on from the process that started this one (`exec_mmap`).
Resident memory counts the mapped pages of a file as well, which the system takes back when others need the room; what
is anonymous it cannot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTERVAL_S = 0.01


@dataclass(slots=True)
class Peak:
    """What one phase took at most, in bytes; sampled, so that shorter peaks than INTERVAL_S may be missed."""

    resident: int = 0
    anonymous: int = 0

    def look(self) -> None:
        """Take one sample."""
        self.resident = max(self.resident, status_bytes("VmRSS"))
        self.anonymous = max(self.anonymous, status_bytes("RssAnon"))


def status_bytes(field: str) -> int:
    """One number of /proc/self/status: "VmHWM", "VmRSS", "RssAnon", "RssFile"."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; accepted: Linux")


def forget_peak() -> None:
    """Let VmHWM begin anew, from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def watched() -> Iterator[Peak]:
    """Sample this process's memory on a thread while the context lasts."""
    peak, done = Peak(), threading.Event()

    def look() -> None:
        while not done.wait(INTERVAL_S):
            peak.look()

    thread = threading.Thread(target=look)
    peak.look()
    thread.start()
    try:
        yield peak
    finally:
        peak.look()
        done.set()
        thread.join()


def fresh(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script in a new process and return what the last line of its output says, in JSON."""
    ran = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def load_average() -> float:
    """How many processes wanted to run, in the last minute: what else the machine did."""
    return os.getloadavg()[0]
