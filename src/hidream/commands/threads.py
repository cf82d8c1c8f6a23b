"""How the threads of a process that computes wait; import nothing heavy here."""

from __future__ import annotations

import os


def let_threads_sleep() -> None:
    """Make waiting OpenMP threads sleep instead of spin; call this before torch is imported.

    If other processes need the cores, spinning is ruinous: next to one busy process, an image of nano took 30 to 70 s
    on two cores instead of 1.0 s. With sleeping threads it took 1.3 s (1.2 s on an idle machine).
    OMP_WAIT_POLICY=active restores spinning.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
