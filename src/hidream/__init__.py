"""hidream: the self-hosted home of the HiDream-I1 text-to-image model.

The names below are imported when they are first used, so that `import hidream` loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hidream import errors, webhooks
    from hidream.client.async_client import AsyncClient
    from hidream.client.client import Client
    from hidream.client.retries import Retry

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Retry", "errors", "webhooks"]

_MODULES = {
    "AsyncClient": "hidream.client.async_client",
    "Client": "hidream.client.client",
    "Retry": "hidream.client.retries",
}
"""Where each name is; the others in `__all__` are modules."""

_EXTRAS: dict[str, str] = {}
"""The extra that installs what a name needs, if the base does not."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name not in __all__:
        raise AttributeError(f"module 'hidream' has no attribute {name!r}")
    from hidream.missing import importing

    with importing(f"hidream.{name}", _EXTRAS.get(name, "client")):
        module = importlib.import_module(_MODULES.get(name, f"hidream.{name}"))
    return getattr(module, name) if name in _MODULES else module


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
