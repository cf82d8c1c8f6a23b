"""hidream: the self-hosted home of the HiDream-I1 text-to-image model.

    import hidream

    pipe = hidream.Pipeline.from_pretrained()
    pipe("a fox in the snow", seed=7).save("fox.png")

The names below are imported when they are first used (PEP 562), so that `import hidream` loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hidream import errors, webhooks
    from hidream.client.async_client import AsyncClient
    from hidream.client.client import Client
    from hidream.client.retries import Retry
    from hidream.library.image import Image, Progress
    from hidream.library.pipeline import Pipeline
    from hidream.request import Prompts

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Image",
    "Pipeline",
    "Progress",
    "Prompts",
    "Retry",
    "__version__",
    "errors",
    "webhooks",
]

_MODULES = {
    "AsyncClient": "hidream.client.async_client",
    "Client": "hidream.client.client",
    "Image": "hidream.library.image",
    "Pipeline": "hidream.library.pipeline",
    "Progress": "hidream.library.image",
    "Prompts": "hidream.request",
    "Retry": "hidream.client.retries",
}
"""Where each name is; the others in `__all__` are modules."""

_EXTRAS = dict.fromkeys(("Image", "Pipeline", "Progress"), "torch")
"""The extra that installs what a name needs, if the base does not."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name not in __all__:
        raise AttributeError(f"module 'hidream' has no attribute {name!r}")
    from hidream.missing import importing

    with importing(f"hidream.{name}", _EXTRAS.get(name, "client")):
        module = importlib.import_module(_MODULES.get(name, f"hidream.{name}"))
    return getattr(module, name) if name in _MODULES else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
