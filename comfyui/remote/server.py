"""The node "hidream server": which server generates, and under which name its key is found."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.v0_0_2 import io

HidreamServer = io.Custom("HIDREAM_SERVER")


@dataclass(frozen=True, slots=True)
class Server:
    """A server as workflows describe it: its address, and the name of the key, never the key."""

    url: str
    key: str
    timeout_s: int


class ServerNode(io.ComfyNode):
    """Describes a server to the nodes that use it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            "HidreamServer",
            display_name="hidream server",
            category="hidream/server",
            inputs=[
                io.String.Input("url", default=""),
                io.String.Input("key", default="HIDREAM_API_KEY"),
                io.Int.Input("timeout_s", default=600, min=1, max=86400),
            ],
            outputs=[HidreamServer.Output(display_name="server")],
        )

    @classmethod
    def execute(cls, url: str, key: str, timeout_s: int) -> io.NodeOutput:
        """Describe the server."""
        return io.NodeOutput(Server(url, key, timeout_s))
