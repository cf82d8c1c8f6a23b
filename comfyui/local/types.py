"""The types of the sockets between this package's own nodes."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

HiDreamModel = io.Custom("HIDREAM_MODEL")
"""A model that hidream loads: `model.LocalModel`."""
HiDreamLoras = io.Custom("HIDREAM_LORAS")
"""LoRAs and their weights: a tuple of (path, weight)."""
HiDreamDetails = io.Custom("HIDREAM_DETAILS")
"""How images came about, for their files: a list of `sample.Details`, one for each image."""

CATEGORY = "hidream"
