"""hidream: the self-hosted home of the HiDream-I1 text-to-image model.

    import hidream

    pipe = hidream.Pipeline.from_pretrained()
    pipe("a fox in the snow", seed=7).save("fox.png")

Importing this package imports nothing else: the names below are loaded when they are first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hidream import errors
    from hidream.library.image import Image, Progress
    from hidream.library.pipeline import Pipeline
    from hidream.request import Prompts

__version__ = "0.1.0"
__all__ = ["Image", "Pipeline", "Progress", "Prompts", "__version__", "errors"]

_HOMES = {
    "Image": "hidream.library.image",
    "Pipeline": "hidream.library.pipeline",
    "Progress": "hidream.library.image",
    "Prompts": "hidream.request",
}
"""The module of each name that is loaded late."""


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module("hidream.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'hidream' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
