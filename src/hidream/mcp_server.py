"""`hidream mcp`: a server of the Model Context Protocol over stdio, with one tool, `generate`.

It is a client of a running hidream server (`hidream.AsyncClient`), with `[mcp] url` and the key HIDREAM_API_KEY.
Standard output carries the protocol, and the log goes to standard error. Importing this file requires the extra `mcp`.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image
from pydantic import WithJsonSchema

from hidream import __version__
from hidream.client.async_client import AsyncClient, AsyncTask
from hidream.client.prediction import Result
from hidream.client.retries import Retry
from hidream.errors import ConfigurationError, ConnectionFailed, HiDreamError, InvalidInput, TimedOut
from hidream.parameter import Choice, Integer, Number, Parameter, Schema, Text
from hidream.request import BY_NAME, Dimensions
from hidream.settings.tables import Settings
from hidream.types import MODELS, ImageFormat

POLL_S = 5.0
"""How long one request waits for the end. Between two of them, the host gets a report of progress."""
MARGIN_S = 30.0
"""How long a request may take beyond the time that it waits, including the download of an image."""
RETRY = Retry(attempts=3)
"""A language model is to hear soon that a server is away."""
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

    async def image(self, model: str, prompt: str, options: dict[str, Any], context: Context[Any]) -> CallToolResult:
        """Have an image generated. Raises ToolError, whose text the language model reads."""
        try:
            async with AsyncClient(self.url, self.key, timeout=MARGIN_S, retry=RETRY) as client:
                task = await client.submit(prompt, model=model, **options)
                await self._wait_until_finished(task, context)
                return _result(await task.result())
        except ConnectionFailed as error:
            raise ToolError(f"the hidream server at {self.url} does not answer: {error.message}") from error
        except HiDreamError as error:
            status = error.status or (error.http_status if isinstance(error, InvalidInput) else None)
            raise ToolError(f"{status}: {error.message}" if status else error.message) from error

    async def _wait_until_finished(self, task: AsyncTask, context: Context[Any]) -> None:
        """Wait for the end of a task. If the caller gives up, cancel the task."""
        began = time.monotonic()
        try:
            while not task.prediction.ended:
                waited_s = time.monotonic() - began
                if waited_s > self.timeout_s:
                    raise ToolError(f"the image was not finished within {self.timeout_s:g} seconds")
                await context.report_progress(waited_s, message=task.status)
                try:
                    await task.wait(timeout=POLL_S)
                except TimedOut:
                    await task.refresh()
        finally:
            if not task.prediction.ended:
                with anyio.CancelScope(shield=True), anyio.move_on_after(POLL_S), contextlib.suppress(HiDreamError):
                    await task.cancel()


def build(caller: Caller) -> MCPServer[Any]:
    """Make the server, without a transport."""
    server: MCPServer[Any] = MCPServer("hidream", version=__version__, instructions=GUIDE, log_level="WARNING")

    async def generate(context: Context[Any], model: str, prompt: str, **options: Any) -> CallToolResult:  # noqa: ANN401
        """Generate an image from a text. The result is the image, its URL and its seed."""
        return await caller.image(model, prompt, options, context)

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


def _result(made: Result) -> CallToolResult:
    task, (file,) = made.prediction, made.files
    about: dict[str, Any] = {
        "url": task.outputs[0],
        "seed": task.seed,
        "id": task.id,
        "model": task.model,
        "version": task.version,
    }
    if any(task.has_nsfw_contents):
        about["has_nsfw_contents"] = True
    if task.warnings:
        about["warnings"] = [*task.warnings]
    data = base64.b64encode(file).decode("ascii")
    image = ImageContent(type="image", data=data, mime_type=str(Image.MIME[str(made.image.format)]))
    return CallToolResult(content=[image, TextContent(type="text", text=json.dumps(about))], structured_content=about)
