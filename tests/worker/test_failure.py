"""What a client reads about an unexpected error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hidream.worker.failure import reason


def too_much() -> torch.Tensor:
    return torch.empty(2**55)


def too_much_for_numpy() -> np.ndarray:
    return np.empty(2**58, np.uint8)


@pytest.mark.parametrize("allocate", [too_much, too_much_for_numpy])
def test_memory_that_is_not_there_is_told_with_what_to_do(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert reason(caught.value, "a/1/0") == (
        "the size is too large for the available memory; accepted: a smaller size, or fewer images at a time"
    )


@pytest.mark.parametrize("error", [RuntimeError("[enforce fail at matmul.cpp:1] x"), ValueError("out of memory?")])
def test_no_library_speaks_to_a_client(error):
    assert reason(error, "a/1/0") == "the worker failed to generate this task; its log says why, under a/1/0"


def test_what_cuda_says_is_memory():
    assert "memory" in reason(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "a")
