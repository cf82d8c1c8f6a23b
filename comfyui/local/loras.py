"""LoRA stack: which LoRAs Sample HiDream applies, and how strongly. They are part of the sampling, not of the model."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from . import files
from .types import CATEGORY, HiDreamLoras

NONE = "none"
SLOTS = 4


class LoraStackHiDream(io.ComfyNode):
    """Several LoRAs with their weights; stacks may be chained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node, with the files that there are now."""
        slots: list[io.Input] = []
        for i in range(1, SLOTS + 1):
            slots.append(io.Combo.Input(f"lora_{i}", options=[NONE, *files.names("lora")], default=NONE))
            slots.append(io.Float.Input(f"weight_{i}", default=1.0, min=-4.0, max=4.0, step=0.05))
        return io.Schema(
            "HidreamLoras",
            display_name="HiDream LoRA stack",
            category=CATEGORY,
            description="LoRAs for Sample HiDream, applied in this order. Changing them does not reload the model.",
            inputs=[HiDreamLoras.Input("loras", optional=True, tooltip="another stack, before this one"), *slots],
            outputs=[HiDreamLoras.Output(display_name="loras")],
        )

    @classmethod
    def validate_inputs(cls, lora_1: str = NONE, lora_2: str = NONE, lora_3: str = NONE, lora_4: str = NONE) -> bool:
        """Leave the names to `execute`, which says where a file should be; ComfyUI would list all that there are."""
        return True

    @classmethod
    def execute(cls, loras: tuple[Any, ...] = (), **slots: Any) -> io.NodeOutput:
        """Join the stacks."""
        chosen = [(slots[f"lora_{i}"], slots[f"weight_{i}"]) for i in range(1, SLOTS + 1)]
        own = tuple((files.path_of("lora", name), weight) for name, weight in chosen if name != NONE)
        return io.NodeOutput((*loras, *own))
