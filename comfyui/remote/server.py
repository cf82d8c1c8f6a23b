"""The node "hidream server": which server generates, and under which name its key is found."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.v0_0_2 import io

from .keys import NAME_ACCEPTED, check_name

HidreamServer = io.Custom("HIDREAM_SERVER")
TIMEOUT_S, TIMEOUT_MAX_S = 600, 86_400


@dataclass(frozen=True, slots=True)
class Server:
    """A server as a workflow describes it: its address, and the name of the key, never the key itself."""

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
            description="A hidream server, or the hosted WaveSpeed API. The workflow contains the name of the API key, "
            "never the key.",
            inputs=[
                io.String.Input(
                    "url",
                    default="",
                    placeholder="the server of the key",
                    tooltip="The address, such as http://127.0.0.1:8000 or https://api.wavespeed.ai. Empty: the server "
                    "to which the key belongs; for HIDREAM_API_KEY that is HIDREAM_BASE_URL, or this computer.",
                ),
                io.String.Input(
                    "key",
                    default="HIDREAM_API_KEY",
                    tooltip=f"{NAME_ACCEPTED[0].upper()}{NAME_ACCEPTED[1:]}. It is looked up in user/__hidream/"
                    "keys.toml, then in the environment (HIDREAM_API_KEY, WAVESPEED_API_KEY).",
                ),
                io.Int.Input(
                    "timeout_s",
                    default=TIMEOUT_S,
                    min=1,
                    max=TIMEOUT_MAX_S,
                    tooltip="How many seconds an image may take, with its time in the queue.",
                ),
            ],
            outputs=[HidreamServer.Output(display_name="server", tooltip="For `Generate on a server`.")],
        )

    @classmethod
    def validate_inputs(cls, key: str | None) -> bool | str:
        """Refuse a key in the place of its name, before anything runs. The message does not repeat it.

        `key` is None if another node gives it; it is then checked when it is looked up.
        """
        from hidream.errors import InvalidInput

        try:
            if key is not None:
                check_name(key)
        except InvalidInput as error:
            return error.message
        return True

    @classmethod
    def execute(cls, url: str, key: str, timeout_s: int) -> io.NodeOutput:
        """Describe the server."""
        return io.NodeOutput(Server(url.strip(), key, timeout_s))
