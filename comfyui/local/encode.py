"""Encode HiDream prompt: a text to CONDITIONING, which hidream's sampler takes, and ComfyUI's own for HiDream-I1.

The layout is that of ComfyUI's own text encoders (comfy/text_encoders/hidream.py at 0.3.64): T5's states as the
conditioning [1, L, D], "pooled_output" of both CLIPs [1, D], "conditioning_llama3" [1, layers, L, D].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io, ui

from .types import CATEGORY, HiDreamModel

if TYPE_CHECKING:
    from hidream.model.text.text_encoders import TextEmbeds

LLAMA = "conditioning_llama3"
POOLED = "pooled_output"
TEXT = "hidream_prompt"
"""The prompt of a conditioning, for the prompt check, which reads it beside the negative one."""
ENCODERS = ("clip_l", "clip_g", "t5", "llama")


class EncodeHiDream(io.ComfyNode):
    """Encodes one prompt with all four text encoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        own = [
            io.String.Input(
                name,
                optional=True,
                force_input=True,
                tooltip="another text for this encoder; not connected: the prompt",
            )
            for name in ENCODERS
        ]
        return io.Schema(
            "HidreamEncode",
            display_name="Encode HiDream prompt",
            category=CATEGORY,
            description="Encodes a prompt, or a negative one. Each encoder reads 128 tokens; the node says what is not "
            "read. Native samplers of HiDream-I1 take the result, too.",
            inputs=[
                HiDreamModel.Input("hidream"),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, default=""),
                io.Boolean.Input(
                    "safety_checker",
                    default=True,
                    tooltip="refuse prompts for explicit content; sexual content with minors is always refused",
                ),
                *own,
            ],
            outputs=[io.Conditioning.Output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=False,
        )

    @classmethod
    def execute(cls, hidream: Any, prompt: str, safety_checker: bool, **own: str | None) -> io.NodeOutput:
        """Encode the prompt, and show what the encoders do not read of it."""
        import torch
        from comfy.model_management import throw_exception_if_processing_interrupted

        from hidream.request import Prompts
        from hidream.safety import prompt as prompt_check

        texts = Prompts(prompt, **own)
        for text in dict.fromkeys((prompt, *texts.each)):
            prompt_check.check(text, enabled=safety_checker)
        model = hidream.load()
        throw_exception_if_processing_interrupted()
        with torch.inference_mode():
            encoded = model.text.embed([texts])
        warnings = "\n".join(encoded.warnings)
        _show(warnings, cls.hidden.unique_id)
        conditioning = conditioning_of(encoded.embeds, prompt)
        return io.NodeOutput(conditioning, ui=ui.PreviewText(warnings) if warnings else None)


def conditioning_of(embeds: TextEmbeds, prompt: str) -> list[list[Any]]:
    """Lay embeddings of one prompt out as CONDITIONING, in host memory."""
    llama = embeds.llama.movedim(0, 1)
    return [[embeds.t5.cpu(), {POOLED: embeds.pooled.cpu(), LLAMA: llama.cpu(), TEXT: prompt}]]


def embeds_of(field: str, conditioning: list[list[Any]]) -> TextEmbeds:
    """Read one prompt's embeddings from CONDITIONING, native or ours. Raises InvalidInput on any other."""
    from hidream.errors import InvalidInput
    from hidream.model.text.text_encoders import TextEmbeds

    accepted = "accepted: that of one prompt, from Encode HiDream prompt or CLIPTextEncodeHiDream"
    if len(conditioning) != 1:
        raise InvalidInput(f"{field} combines {len(conditioning)} prompts; {accepted}", field=field)
    t5, rest = conditioning[0]
    if LLAMA not in rest or rest.get(POOLED) is None:
        raise InvalidInput(f"{field} is of another model: it has no {LLAMA} or no {POOLED}; {accepted}", field=field)
    unused = sorted(name for name, value in rest.items() if name not in (LLAMA, POOLED, TEXT) and value is not None)
    if unused:
        raise InvalidInput(f"{field} has {', '.join(unused)}, which this sampler does not use; {accepted}", field=field)
    return TextEmbeds(t5=t5, llama=rest[LLAMA].movedim(1, 0), pooled=rest[POOLED])


def text_of(conditioning: list[list[Any]]) -> str:
    """Return the prompt of a conditioning; empty where it is not known."""
    return str(conditioning[0][1].get(TEXT, ""))


def _show(text: str, node: str | None) -> None:
    """Show a text in the node, or remove the one before."""
    from server import PromptServer

    if node is not None and getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node)
