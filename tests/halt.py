"""Stops a process at a chosen place."""

import os
import signal
import time
from pathlib import Path


def halt(pid):
    """Stop all threads of a process; returns when none of them runs any more, which the signal alone does not say."""
    os.kill(pid, signal.SIGSTOP)
    while any(state(thread) not in "tTZX" for thread in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


def state(thread):
    """One letter, behind the name in brackets (proc(5)); X of one that is gone."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
