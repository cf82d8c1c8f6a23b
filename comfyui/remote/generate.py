"""The node "Generate on a server": every parameter of the API, progress with previews, and images."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from comfy_api.v0_0_2 import io

from .keys import credentials
from .parameters import keywords, widgets
from .server import HidreamServer, Server

if TYPE_CHECKING:
    from PIL import Image

    from hidream.client.events import Event
    from hidream.client.prediction import Result


Details = io.Custom("HIDREAM_DETAILS")
"""How images came about, for their files: a list with `seed` and `version` for each image, as the local nodes have."""


PREVIEW_PX = 512
"""The longer side of a preview at most, unless the server's is larger: as of ComfyUI's own."""


class Detail(NamedTuple):
    """How one image came about; None if the server does not say it."""

    seed: int | None
    version: str | None


class GenerateNode(io.ComfyNode):
    """Generates images on a server. ComfyUI runs several of these at once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        from hidream.request import BY_NAME
        from hidream.types import Variant

        return io.Schema(
            "HidreamGenerateOnServer",
            display_name="Generate on a server",
            category="hidream/server",
            description="Generates images with HiDream-I1 on a hidream server, or with the hosted API.",
            inputs=[
                HidreamServer.Input("server"),
                io.String.Input("prompt", multiline=True, default="", tooltip=BY_NAME["prompt"].description),
                io.Combo.Input("model", options=[str(each) for each in Variant], tooltip="The variant of HiDream-I1."),
                *(each.input for each in widgets()),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Int.Output(display_name="seed", tooltip="The seed of the first image; the next one has the next."),
                io.String.Output(display_name="info", tooltip="Seed, version, warnings and timings, as JSON."),
                Details.Output(display_name="details", tooltip="Seeds and version, for `Save HiDream image`."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: object) -> str:
        """A random seed gives another image each time, so ComfyUI must not reuse the last one."""
        return uuid.uuid4().hex if values.get("seed") == -1 else ""

    @classmethod
    async def execute(cls, server: Server, prompt: str, model: str, **values: Any) -> io.NodeOutput:  # noqa: ANN401
        """Generate the images."""
        import comfy.model_management
        import folder_paths

        from .generation import Interruption, generate
        from .tensors import batch, pixels

        for name in ("image", "mask"):
            if values.get(name) is not None:
                values[name] = pixels(name, values[name])
        found = credentials(server.url, server.key, os.environ, Path(folder_paths.get_user_directory()))
        request = {"prompt": prompt, "model": model, **keywords(values)}
        shown = Shown(cls.hidden.unique_id)
        interrupted = comfy.model_management.processing_interrupted
        try:
            result = await generate(found, request, server.timeout_s, shown.event, interrupted)
        except Interruption:
            raise comfy.model_management.InterruptProcessingException from None
        shown.end()
        shown.text(_summary(result))
        seed = -1 if result.seed is None else result.seed
        return io.NodeOutput(batch(result.images), seed, _info(result), _details(result))


class Shown:
    """What a node shows of its task: a progress bar with previews, and a line of text."""

    def __init__(self, node_id: str) -> None:
        import comfy.utils

        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(1)
        self._said, self._steps = "", 1

    def event(self, event: Event) -> None:
        """Show how far the task is. Raises ComfyUI's own error when it was interrupted."""
        waiting = event.prediction.queue
        if waiting and not event.steps:
            reason = f": {waiting['reason']}" if waiting.get("reason") else ""
            self.text(f"waiting, number {waiting.get('position', '?')} in the queue{reason}")
        if event.steps:
            self.text(f"step {event.step} of {event.steps}")
            preview = event.preview
            image = None if preview is None else ("JPEG", _enlarged(preview), None)
            self._steps = event.steps
            self._bar.update_absolute(event.step, event.steps, image)

    def end(self) -> None:
        """Fill the bar: a server need not tell of every step."""
        self._bar.update_absolute(self._steps, self._steps)

    def text(self, text: str) -> None:
        """Show a line in the node."""
        from server import PromptServer

        if text != self._said:
            PromptServer.instance.send_progress_text(text, self._node_id)
            self._said = text


def _enlarged(preview: Image.Image) -> Image.Image:
    """Enlarge a preview, which has one pixel for each cell of the latent; the front end shows it as large as it is."""
    scale = max(1, PREVIEW_PX // max(preview.size))
    return preview.convert("RGB").resize((preview.width * scale, preview.height * scale))


def _summary(result: Result) -> str:
    seed = "" if result.seed is None else f"seed {result.seed}, "
    lines = [f"{seed}{result.timings.inference_s:.1f} s", *result.warnings]
    if any(result.prediction.has_nsfw_contents):
        lines.append("the safety check flagged an image")
    return "\n".join(lines)


def _details(result: Result) -> list[Detail]:
    """One entry for each image, with its own seed."""
    first = result.seed
    return [Detail(None if first is None else first + i, result.version or None) for i in range(len(result.files))]


def _info(result: Result) -> str:
    """What is known about the images; none of it is secret."""
    prediction = result.prediction
    return json.dumps(
        {
            "id": prediction.id,
            "model": prediction.model,
            "seed": prediction.seed,
            "version": prediction.version,
            "warnings": prediction.warnings,
            "has_nsfw_contents": prediction.has_nsfw_contents,
            "inference_s": prediction.timings.inference_s,
        },
        ensure_ascii=False,
    )
