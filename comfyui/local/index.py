"""The local nodes. Each module declares its nodes, and imports torch, hidream and what else is heavy when one runs."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from .accelerate import AccelerateHiDream
from .encode import EncodeHiDream
from .images import DecodeHiDream, EncodeImageHiDream, SaveHiDream
from .load import LoadHiDream
from .loras import LoraStackHiDream
from .sample import SampleHiDream


def nodes() -> list[type[io.ComfyNode]]:
    """Return the classes of all local nodes."""
    return [
        LoadHiDream,
        EncodeHiDream,
        LoraStackHiDream,
        EncodeImageHiDream,
        SampleHiDream,
        DecodeHiDream,
        SaveHiDream,
        AccelerateHiDream,
    ]
