"""Garbage collection while a process loads. Standard library only, so that the command line needs no worker for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Import and load without garbage collection, and exclude what was loaded from later collections.

    Torch, transformers and diffusers are 420,000 objects. While they are imported, Python's collector scans all of them
    six times: 0.8 s on an EPYC (docs/LOG.md). For processes that end soon, or load once.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
