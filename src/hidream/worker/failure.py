"""The error text that a client sees after an unexpected error: what to do, never a library's own message.

The library's message is in the log, for the operator. Errors are recognised by their text, because the worker's loop
runs without torch.
"""

from __future__ import annotations

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_cpu.cpp", "alloc_failed", "bad_alloc")
"""Texts of RuntimeErrors from torch's allocators (CPU, CUDA, MPS, cuBLAS) and C++, in lower case."""


TOO_LARGE = "the size is too large for the available memory; accepted: a smaller size, or fewer images at a time"


def reason(error: Exception, logged_as: str) -> str:
    """Return why a task failed; `logged_as` identifies its traceback in the worker's log."""
    if out_of_memory(error):
        return TOO_LARGE
    return f"the worker failed to generate this task; its log says why, under {logged_as}"


def out_of_memory(error: Exception) -> bool:
    """Whether an allocator raised this error; the memory may be free again when other requests have ended."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in message for text in OUT_OF_MEMORY)
    )
