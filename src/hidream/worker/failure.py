"""What a client reads of an error that nobody foresaw: what to do, never the words of a library.

Those are for the operator, in the log. Knows errors by their names, because the worker's loop runs without torch.
"""

from __future__ import annotations

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_cpu.cpp", "alloc_failed", "bad_alloc")
"""How torch's allocators (CPU, CUDA, MPS, cuBLAS) and C++ say so in a RuntimeError, in lower case."""


TOO_LARGE = "the size is too large for the memory there is; accepted: a smaller size, or fewer images at a time"


def reason(error: Exception, logged_as: str) -> str:
    """Say why a task failed; `logged_as` is what its traceback is found by in the worker's log."""
    if out_of_memory(error):
        return TOO_LARGE
    return f"the worker failed to draw this task; its log says why, under {logged_as}"


def out_of_memory(error: Exception) -> bool:
    """Whether an allocator has raised this: what it was asked for may be there when nobody else needs it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in OUT_OF_MEMORY)
    )
