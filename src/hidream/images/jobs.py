"""The jobs on untrusted image files; they run only in the decoder process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hidream.errors import InvalidInput
from hidream.images.image_file import UNTRUSTED_FORMATS
from hidream.images.measure import identify, oriented_size
from hidream.images.prepared import prepare
from hidream.images.protocol import ALIGN
from hidream.images.structure import check
from hidream.types import Size


def run_job(job: Mapping[str, Any], files: Sequence[bytes], out: int) -> None:
    """Run a job, and write its result or its refusal to the descriptor `out`."""
    arrays: list[np.ndarray] = []
    try:
        result = JOBS[job["name"]](job, files, arrays)
    except InvalidInput as error:
        result, arrays = {"refused": str(error)}, []
    with os.fdopen(out, "wb", closefd=False) as stream:
        for array in arrays:
            stream.write(array.data)
            stream.write(bytes(-array.nbytes % ALIGN))
        text = json.dumps(result).encode()
        stream.write(text + len(text).to_bytes(8, "little"))


def _identify(job: Mapping[str, Any], files: Sequence[bytes], _arrays: list[np.ndarray]) -> dict[str, Any]:
    check(job["field"], files[0])
    return {"format": identify(job["field"], files[0])}


def _oriented_size(job: Mapping[str, Any], files: Sequence[bytes], _arrays: list[np.ndarray]) -> dict[str, Any]:
    check(job["field"], files[0])
    return {"size": oriented_size(job["field"], files[0], UNTRUSTED_FORMATS)}


def _prepare(job: Mapping[str, Any], files: Sequence[bytes], arrays: list[np.ndarray]) -> dict[str, Any]:
    for field, data in zip(("image", "mask"), files, strict=False):
        check(field, data)
    image, mask = files[0], files[1] if len(files) > 1 else None
    try:
        prepared = prepare([Size(*sides) for sides in job["sizes"]], image, mask, UNTRUSTED_FORMATS)
    except MemoryError as error:
        raise InvalidInput("image takes more memory than it may; accepted: an image of fewer pixels") from error
    layers = []
    for each in prepared.planes.values():
        layers.append([each.mask is not None, each.alpha is not None])
        arrays += [np.ascontiguousarray(a) for a in (each.image, each.mask, each.alpha) if a is not None]
    return {"layers": layers, "warnings": prepared.warnings}


JOBS: dict[str, Callable[[Mapping[str, Any], Sequence[bytes], list[np.ndarray]], dict[str, Any]]] = {
    "identify": _identify,
    "oriented_size": _oriented_size,
    "prepare": _prepare,
}
