"""HiDream-I1 for ComfyUI: generates on this computer, or on a hidream server.

Imports nothing heavy: ComfyUI imports this at its start, and each node what it needs when it runs.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.v0_0_2 import ComfyExtension

logger = logging.getLogger(__name__)


async def comfy_entrypoint() -> ComfyExtension:
    """Name the nodes of this package; ComfyUI calls this at its start."""
    from comfy_api.v0_0_2 import ComfyExtension, io

    _check_hidream()
    from .local.index import nodes as local_nodes
    from .remote.index import nodes as remote_nodes

    class Extension(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            nodes = [*local_nodes(), *remote_nodes()]
            logger.info("hidream: %d nodes", len(nodes))
            return nodes

    return Extension()


def _check_hidream() -> None:
    """Raise ImportError if this Python has no hidream; ComfyUI's log shows the message, and goes on without us."""
    try:
        import hidream  # noqa: F401
    except ImportError:
        raise ImportError(
            f'the nodes need hidream, which this Python does not have; install it with: "{sys.executable}" -m pip '
            "install hidream"
        ) from None
