"""Garbage collection while a process loads. Standard library only, so that the command line needs no worker for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Import and load without garbage collection, and exclude what was loaded from later collections.

    Torch and transformers are hundreds of thousands of objects. While they are imported, Python's collector scans them
    all several times (docs/LOG.md). For processes that end soon, or load once.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
