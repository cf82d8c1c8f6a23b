"""The remote nodes."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from .generate import GenerateNode
from .server import ServerNode


def nodes() -> list[type[io.ComfyNode]]:
    """Return the classes of all remote nodes."""
    return [ServerNode, GenerateNode]
