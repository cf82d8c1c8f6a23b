"""`hidream mcp`: a server of the Model Context Protocol over stdio, with one tool, `generate`.

It talks to a running hidream server over HTTP, like any client, with the URL `[mcp] url` and the key HIDREAM_API_KEY.
Standard output carries the protocol, and the log goes to standard error. Importing this file requires the extra `mcp`.
"""

from __future__ import annotations

import base64
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import httpx
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, TextContent
from pydantic import WithJsonSchema

from hidream import __version__
from hidream.errors import ConfigurationError
from hidream.parameter import Choice, Integer, Number, Parameter, Schema, Text
from hidream.request import BY_NAME, Dimensions
from hidream.settings.tables import Settings
from hidream.types import MODELS, ImageFormat, Status

POLL_S = 5.0
"""How long one request waits for the end. Between two of them, the host gets a report of progress."""
MARGIN_S = 30.0
"""How long a request may take beyond the time that it waits, including the download of an image."""
GUIDE = "Generates images from text with HiDream-I1 on your own server. Each image comes with its seed."

MODEL_NAMES = [name.rpartition("/")[2] for name in MODELS]
OFFERED = (
    "prompt",
    "size",
    "seed",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "output_format",
)
"""The parameters that a language model may set, by the names of the API."""
DEFAULTS = {"output_format": ImageFormat.JPEG}
"""As v3's, where the declaration has another."""
_TYPES = {Text: str, Dimensions: str, Choice: str, Integer: int, Number: float}


def run(settings: Settings) -> int:
    """Serve until standard input is closed. Raises ConfigurationError without a key."""
    if not settings.api_key:
        raise ConfigurationError("HIDREAM_API_KEY is not set; accepted: an API key of the hidream server")
    build(Caller(settings.mcp.url.rstrip("/"), settings.api_key, settings.mcp.timeout_s)).run("stdio")
    return 0


@dataclass(frozen=True, slots=True)
class Caller:
    """A hidream server, as its client sees it."""

    url: str
    key: str
    timeout_s: float

    async def image(self, model: str, body: dict[str, Any], context: Context[Any]) -> CallToolResult:
        """Have an image generated. Raises ToolError, whose text the language model reads."""
        headers = {"Authorization": f"Bearer {self.key}", "User-Agent": f"hidream-mcp/{__version__}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=POLL_S + MARGIN_S) as client:
            try:
                task = await _call(client, "POST", f"/api/v3/wavespeed-ai/{model}", json=body)
                ended = await self._wait_until_finished(client, task, context)
                return await _result(ended)
            except httpx.HTTPError as error:
                message = str(error) or type(error).__name__
                raise ToolError(f"the hidream server at {self.url} does not answer: {message}") from error

    async def _wait_until_finished(
        self, client: httpx.AsyncClient, task: dict[str, Any], context: Context[Any]
    ) -> dict[str, Any]:
        """Wait for the end of a task. If the caller gives up, cancel the task."""
        path = f"/api/v3/predictions/{task['id']}"
        began = time.monotonic()
        try:
            while not Status(task["status"]).final:
                waited_s = time.monotonic() - began
                if waited_s > self.timeout_s:
                    raise ToolError(f"the image was not finished within {self.timeout_s:g} seconds")
                await context.report_progress(waited_s, message=task["status"])
                task = await _call(client, "GET", path, params={"wait_s": POLL_S})
        finally:
            if not Status(task["status"]).final:
                with anyio.CancelScope(shield=True), anyio.move_on_after(POLL_S):
                    await client.delete(path)
        return task


def build(caller: Caller) -> MCPServer[Any]:
    """Make the server, without a transport."""
    server: MCPServer[Any] = MCPServer("hidream", version=__version__, instructions=GUIDE, log_level="WARNING")

    async def generate(context: Context[Any], model: str, **asked: Any) -> CallToolResult:  # noqa: ANN401
        """Generate an image from a text. The result is the image, its URL and its seed."""
        return await caller.image(model, asked | {"enable_base64_output": False}, context)

    generate.__signature__ = _signature(generate)  # type: ignore[attr-defined]
    server.add_tool(generate)
    return server


def _signature(tool: Callable[..., Any]) -> inspect.Signature:
    """Give the tool's arguments, from which the SDK makes its schema: the context, OFFERED and the model."""
    context = inspect.signature(tool, eval_str=True).parameters["context"]
    arguments = {name: _argument(BY_NAME[name]) for name in OFFERED}
    models = {"enum": [*MODEL_NAMES], "description": "The variant of the model; not every server has all of them."}
    arguments["model"] = _keyword("model", str, {"type": "string", **models}, MODEL_NAMES[0])
    return inspect.Signature([context, *arguments.values()], return_annotation=CallToolResult)


def _argument(parameter: Parameter) -> inspect.Parameter:
    """Describe a parameter of a request; its bounds are for the language model, and the server checks them."""
    kind: Any = _TYPES[type(parameter.kind)]
    default = DEFAULTS.get(parameter.name, parameter.default)
    described = parameter.schema(default=default)
    if parameter.guided:
        described["description"] += " For hidream-i1-full only."
    if parameter.name == "prompt":
        return _keyword(parameter.name, kind, described, inspect.Parameter.empty)
    if default is None:
        description = described.pop("description")
        kind, described = kind | None, {"anyOf": [described, {"type": "null"}], "description": description}
    return _keyword(parameter.name, kind, described, str(default) if kind is str else default)


def _keyword(name: str, kind: Any, described: Schema, default: object) -> inspect.Parameter:  # noqa: ANN401
    how = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, how, default=default, annotation=Annotated[kind, WithJsonSchema(described)])


async def _call(client: httpx.AsyncClient, method: str, path: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401
    """Ask the server, and return its answer's data. Raises ToolError with what it says is wrong."""
    answer = await client.request(method, path, **request)
    if answer.is_success:
        data: dict[str, Any] = answer.json()["data"]
        return data
    try:
        message = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        message = "not the response of a hidream server"
    raise ToolError(f"{answer.status_code}: {message}")


async def _result(task: dict[str, Any]) -> CallToolResult:
    if task["status"] != Status.COMPLETED:
        raise ToolError(task["error"] or f"the task was {task['status']}")
    (url,) = task["outputs"]
    async with httpx.AsyncClient(timeout=MARGIN_S, follow_redirects=True) as bare:  # the download sends no key
        file = (await bare.get(url)).raise_for_status()
    about = {"url": url, "seed": task["seed"], "id": task["id"], "model": task["model"], "version": task["version"]}
    if any(task["has_nsfw_contents"]):
        about["has_nsfw_contents"] = True
    if "warnings" in task:
        about["warnings"] = task["warnings"]
    data = base64.b64encode(file.content).decode("ascii")
    media_type = file.headers.get("content-type", "image/jpeg").partition(";")[0]
    image = ImageContent(type="image", data=data, mime_type=media_type)
    return CallToolResult(content=[image, TextContent(type="text", text=json.dumps(about))], structured_content=about)
