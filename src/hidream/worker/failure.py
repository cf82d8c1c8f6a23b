"""What a client reads of an error that nobody foresaw: what to do, never the words of a library.

Those are for the operator, in the log. Knows errors by their names, because the worker's loop runs without torch.
"""

from __future__ import annotations

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_cpu.cpp", "alloc_failed", "bad_alloc")
"""How torch's allocators (CPU, CUDA, MPS, cuBLAS) and C++ say so in a RuntimeError, in lower case."""


def reason(error: Exception, logged_as: str) -> str:
    """Say why a task failed; `logged_as` is what its traceback is found by in the worker's log."""
    if _out_of_memory(error):
        return "the size is too large for the memory there is; accepted: a smaller size, or fewer images at a time"
    return f"the worker failed to draw this task; its log says why, under {logged_as}"


def _out_of_memory(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in OUT_OF_MEMORY)
    )
