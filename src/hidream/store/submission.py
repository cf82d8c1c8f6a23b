"""A request as it was accepted, and the JSON object that the row keeps of it.

The column is the place where a parameter that comes later finds room without a migration: what a row does not say
has its default here, and so a task that an earlier release accepted is still drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from hidream.types import MODELS, STRENGTH, Conformance, ImageFormat, LoraUse, Mode, Render, Sampler, Size, Variant

USUAL_STEPS = Variant.DEV.steps
"""Steps of the unit in which work is told to people, and of a task whose model is not known here."""


@dataclass(frozen=True, slots=True)
class Submission:
    """The API's parameters by their names, defaults filled in, seed drawn; None means the variant's own."""

    prompt: str
    size: Size
    seed: int
    enable_base64_output: bool
    enable_safety_checker: bool
    enable_sync_mode: bool
    output_format: ImageFormat
    negative_prompt: str = ""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    shift: float | None = None
    sampler: Sampler | None = None
    conformance: Conformance = Conformance.DIFFUSERS
    render: Render = Render.BEST
    mode: Mode = Mode.EXACT
    loras: tuple[LoraUse, ...] = ()
    num_images: int = 1
    output_quality: int | None = None
    image: str | None = None  # the name of an upload, as mask is
    strength: float = STRENGTH
    mask: str | None = None

    @property
    def pixels(self) -> int:
        """Pixels of all its pictures together."""
        return self.size.width * self.size.height * self.num_images

    def steps(self, model: str) -> int:
        """Steps of each of its pictures, by this model."""
        variant = MODELS.get(model)
        return self.num_inference_steps or (variant.steps if variant else USUAL_STEPS)

    def work(self, model: str) -> int:
        """What its pictures cost with this model, in pixel steps."""
        return self.pixels * self.steps(model)

    def to_json(self) -> dict[str, Any]:
        """Give the JSON object that the row keeps."""
        loras = [{"name": lora.name, "scale": lora.weight} for lora in self.loras]
        return {name: getattr(self, name) for name in self.__slots__} | {"size": str(self.size), "loras": loras}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Undo `to_json`, that of earlier releases too."""
        width, height = value["size"].split("*")
        sampler = value.get("sampler")
        typed = {
            "size": Size(int(width), int(height)),
            "output_format": ImageFormat(value["output_format"]),
            "sampler": sampler and Sampler(sampler),
            "conformance": Conformance(value.get("conformance", Conformance.DIFFUSERS)),
            "render": Render(value.get("render", Render.BEST)),
            "mode": Mode(value.get("mode", Mode.EXACT)),
            "loras": tuple(LoraUse(lora["name"], lora["scale"]) for lora in value.get("loras", ())),
        }
        return cls(**value | typed)
