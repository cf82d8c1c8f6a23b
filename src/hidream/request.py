"""What a generation is asked for: `ImageRequest` declares each of its parameters, once.

Derived from it: how every version of the API reads a body (`server/parameters`), the OpenAPI document and the schema of
`GET /models` (`server/schema`), the row of the database, what the worker gives to the model, the flags of `hidream
generate` (`arguments`), the schema of the MCP tool, and the tables in docs/API.md (`server/parameter_tables`). To add a
parameter: CONTRIBUTING.md. Standard library only.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Self

from hidream.errors import InvalidInput, MissingInput
from hidream.parameter import (
    AsItIs,
    Choice,
    CommandFlag,
    Flag,
    Number,
    OverlongText,
    Parameter,
    Schema,
    Text,
    Whole,
    by_name,
    declared,
    in_words,
    refused,
)
from hidream.types import (
    DEFAULT_SIZE,
    FORMAT_NAMES,
    FORMATS,
    GUIDANCE_MAX,
    IMAGES_MAX,
    LORA_WEIGHT_MAX,
    LORAS_MAX,
    LOSSY,
    MODELS,
    PROMPT_MAX_CHARS,
    QUALITY_MAX,
    RANDOM_SEEDS,
    SEED_MAX,
    SHIFT_MAX,
    SHIFT_MIN,
    SIDE_MAX_PX,
    SIDE_MIN_PX,
    STEPS_MAX,
    STRENGTH,
    STRENGTH_MIN,
    USUAL_STEPS,
    Conformance,
    ImageFormat,
    Mode,
    Render,
    Sampler,
    Size,
)

_LOSSY = in_words(FORMATS[each].label for each in LOSSY)
_QUALITIES = ", ".join(f"{FORMATS[each].label} {FORMATS[each].quality}" for each in LOSSY)


@dataclass(frozen=True, slots=True)
class Prompts:
    """One picture's prompt, and what single text encoders are told instead.

    None means the prompt itself; an empty text is an empty text (the reference takes it for None).
    """

    prompt: str
    clip_l: str | None = None
    clip_g: str | None = None
    t5: str | None = None
    llama: str | None = None

    @property
    def each(self) -> tuple[str, str, str, str]:
        """What CLIP-L, CLIP-G, T5 and Llama are told."""
        clip_l, clip_g, t5, llama = (
            self.prompt if own is None else own for own in (self.clip_l, self.clip_g, self.t5, self.llama)
        )
        return clip_l, clip_g, t5, llama


_LORA_NAME = Text(PROMPT_MAX_CHARS, what="the name of a configured LoRA")
_LORA_WEIGHT = Number(-LORA_WEIGHT_MAX, LORA_WEIGHT_MAX)


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA by the name under which the model knows it, and how strongly it is applied."""

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not -LORA_WEIGHT_MAX <= self.weight <= LORA_WEIGHT_MAX:
            raise refused(f"weight of the LoRA {self.name!r}", self.weight, f"{-LORA_WEIGHT_MAX} to {LORA_WEIGHT_MAX}")


@dataclass(frozen=True, slots=True)
class Dimensions:
    """A size, as the text "W*H" or "WxH" with both sides in a range of pixels."""

    smallest: int
    largest: int

    @property
    def accepted(self) -> str:
        """The range."""
        return f"width*height, each {self.smallest} to {self.largest}, such as {DEFAULT_SIZE}"

    def read(self, field: str, value: object) -> Size:
        """Read a size. Raises InvalidInput."""
        if not isinstance(value, str):
            raise refused(field, value, f"a text such as {str(DEFAULT_SIZE)!r}")
        return Size.parse(value, self.smallest, self.largest)

    def schema(self) -> Schema:
        """Describe it."""
        return {"type": "string", "pattern": r"^[0-9]{1,6}[*xX][0-9]{1,6}$"}

    def to_json(self, value: Size) -> str:
        """Write "W*H"."""
        return str(value)

    def from_json(self, value: str) -> Size:
        """Undo `to_json`, in whatever range."""
        width, height = value.split("*")
        return Size(int(width), int(height))


@dataclass(frozen=True, slots=True)
class Source(AsItIs):
    """Where an image file is; the server brings it."""

    @property
    def accepted(self) -> str:
        """The ways to say it."""
        return "the text of a URL, a data: URI or base64"

    def read(self, field: str, value: object) -> str | OverlongText:
        """Read a text of any length. Raises InvalidInput."""
        if isinstance(value, OverlongText):
            return value
        if not isinstance(value, str):
            raise refused(field, value, self.accepted)
        return value.strip()

    def schema(self) -> Schema:
        """Describe it."""
        return {"type": "string"}


@dataclass(frozen=True, slots=True)
class Loras:
    """A list of {"name", "scale"}; WaveSpeed's clients write "path", and mean no file of ours by it."""

    most: int
    entry: str = '{"name": ..., "scale": 1}'

    @property
    def accepted(self) -> str:
        """The form."""
        return f"a list of up to {self.most} objects {self.entry}"

    def read(self, field: str, value: object) -> tuple[LoraUse, ...]:
        """Read a list. Raises InvalidInput, or MissingInput for an entry without a name."""
        if isinstance(value, list) and len(value) > self.most:
            raise InvalidInput(f"{field} has {len(value)} entries; accepted: {self.accepted}", field=field)
        if not isinstance(value, list):
            raise refused(field, value, self.accepted)
        return tuple(self._read_one(f"{field}[{i}]", each) for i, each in enumerate(value))

    def _read_one(self, field: str, value: object) -> LoraUse:
        if not isinstance(value, dict):
            raise refused(field, value, f"an object {self.entry}")
        name, scale = value.get("name") or value.get("path"), value.get("scale")
        if not name:
            raise MissingInput(f"{field} has no name; accepted: an object {self.entry}", field=field)
        return LoraUse(
            _LORA_NAME.read(f"{field}.name", name),
            _LORA_WEIGHT.read(f"{field}.scale", 1.0 if scale is None else scale),
        )

    def schema(self) -> Schema:
        """Describe it."""
        lora = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "A configured LoRA.", "minLength": 1},
                "path": {"type": "string", "description": "The same."},
                "scale": {**_LORA_WEIGHT.schema(), "description": "How strongly.", "default": 1},
            },
            "anyOf": [{"required": ["name"]}, {"required": ["path"]}],
        }
        return {"type": "array", "items": lora, "maxItems": self.most}

    def to_json(self, value: tuple[LoraUse, ...]) -> list[dict[str, object]]:
        """Write what `read` reads."""
        return [{"name": lora.name, "scale": lora.weight} for lora in value]

    def from_json(self, value: list[dict[str, Any]]) -> tuple[LoraUse, ...]:
        """Undo `to_json`."""
        return tuple(LoraUse(lora["name"], lora["scale"]) for lora in value)


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """All that a generation is asked for: each parameter is declared here, and nowhere else.

    A field's `Parameter` says its type, bounds, description and names; the field's default is the API's too, unless
    `server/parameters` has another one for a version. The same object is stored in the row, and the worker gives it to
    the model, one for each image. Fields that say how images are delivered mean nothing to the model.

    `steps`, `guidance`, `shift` and `sampler` of None mean the variant's own (`PRESETS`). `seed` is the seed that is
    used: a random one is chosen by whoever makes the request, so that it can be written down first.

    `image` is the content of a file to start from, the name of an upload where the request comes from a client, or
    empty where the pixels come beside the request; so is `mask`. `strength` is the share of the steps that are taken: 1
    ignores the image's details, near 0 hardly changes it. The mask is of equal size, white where the image may change,
    or transparent there if any of it is. Without one, what is transparent in the image may change.
    `prompt` may tell single text encoders something else.

    Raises InvalidInput, or MissingInput without a prompt.
    """

    prompt: Annotated[
        str | Prompts, Parameter(Text(PROMPT_MAX_CHARS, may_be_empty=False), "What to draw.", documented=True)
    ]
    size: Annotated[
        Size,
        Parameter(
            Dimensions(SIDE_MIN_PX, SIDE_MAX_PX),
            "Width*height in pixels, each {smallest} to {largest}.",
            default=DEFAULT_SIZE,
            documented=True,
            flag=CommandFlag(name="--size", help=f"width*height in pixels (default: {DEFAULT_SIZE}, or as --image)"),
            notes="the image has exactly this size",
        ),
    ]
    seed: Annotated[
        int,
        Parameter(
            Whole(-1, SEED_MAX),
            "Same seed, same picture; -1 draws one.",
            default=-1,
            documented=True,
            flag=CommandFlag(name="--seed", help=f"0 to {SEED_MAX}; -1 draws one (default)"),
            notes="−1 chooses a random one",
        ),
    ]
    enable_base64_output: Annotated[
        bool,
        Parameter(
            Flag(),
            "Outputs are base64 instead of URLs.",
            documented=True,
            notes="`outputs` holds naked base64 instead of URLs",
        ),
    ] = False
    enable_safety_checker: Annotated[
        bool,
        Parameter(
            Flag(),
            "Refuse prompts that ask for what should not be drawn.",
            documented=True,
            notes="see [SAFETY.md](SAFETY.md)",
        ),
    ] = True
    enable_sync_mode: Annotated[
        bool,
        Parameter(
            Flag(),
            "Answer when the picture is done.",
            documented=True,
            notes="the answer waits for the images, up to `sync_timeout_s`",
        ),
    ] = False
    output_format: Annotated[
        ImageFormat, Parameter(Choice(ImageFormat, FORMAT_NAMES), "The files' format.", documented=True)
    ] = ImageFormat.PNG
    num_images: Annotated[
        int,
        Parameter(
            Whole(1, IMAGES_MAX),
            "How many pictures, of seed, seed + 1, and so on.",
            notes="images of `seed`, `seed` + 1, and so on",
        ),
    ] = 1
    output_quality: Annotated[
        int | None,
        Parameter(
            Whole(1, QUALITY_MAX),
            f"Of {_LOSSY} files.",
            shown_default=_QUALITIES,
            notes="PNG has none",
        ),
    ] = None
    image: Annotated[
        bytes | str | None,
        Parameter(
            Source(),
            "A picture to start from: a URL, a data: URI, base64, or an upload's download_url.",
            flag=CommandFlag(name="--image", help="a picture to start from"),
            notes="[an image](#images-to-start-from) to start from",
        ),
    ] = None
    strength: Annotated[
        float,
        Parameter(
            Number(STRENGTH_MIN, 1),
            "How much of it may change.",
            flag=CommandFlag(name="--strength", help="how much of --image is redrawn, up to 1 (default: %(default)s)"),
            notes="how much of `image` may change",
        ),
    ] = STRENGTH
    mask: Annotated[
        bytes | str | None,
        Parameter(
            Source(),
            "Likewise an image of equal size, white where the image may change, or transparent.",
            flag=CommandFlag(name="--mask", help="white, or transparent, where --image may change, and of its size"),
            notes="an image as large as `image`, white where it may change, or transparent there if any of it is",
        ),
    ] = None
    steps: Annotated[
        int | None,
        Parameter(
            Whole(1, STEPS_MAX),
            "Steps; absent, the model's own.",
            name="num_inference_steps",
            flag=CommandFlag(name="--steps", help="denoising steps (default: the variant's own)"),
        ),
    ] = None
    shift: Annotated[
        float | None,
        Parameter(
            Number(SHIFT_MIN, SHIFT_MAX),
            "Shift of the noise levels; absent, the model's own.",
            flag=CommandFlag(name="--shift", help="shift of the noise levels (default: the variant's own)"),
            notes="shift of the noise levels",
        ),
    ] = None
    sampler: Annotated[
        Sampler | None,
        Parameter(
            Choice(Sampler),
            "How noise becomes a picture.",
            flag=CommandFlag(name="--sampler", help="default: the variant's own"),
        ),
    ] = None
    conformance: Annotated[
        Conformance,
        Parameter(
            Choice(Conformance),
            "Whose schedule.",
            flag=CommandFlag(name="--conformance", help="whose schedule, where they differ"),
            notes="whose schedule, where they differ ([REFERENCES.md](REFERENCES.md))",
        ),
    ] = Conformance.DIFFUSERS
    render: Annotated[
        Render,
        Parameter(
            Choice(Render),
            "Which shape the model itself draws.",
            flag=CommandFlag(name="--render", help="which shape the model itself draws"),
            notes="which shape the model itself generates",
        ),
    ] = Render.BEST
    mode: Annotated[
        Mode,
        Parameter(
            Choice(Mode),
            "What may be lost for speed.",
            flag=CommandFlag(name="--mode", help="what may be lost for speed (default: %(default)s)"),
            notes="what the image may lose for speed; `version` names it",
        ),
    ] = Mode.EXACT
    loras: Annotated[
        tuple[LoraUse, ...],
        Parameter(
            Loras(LORAS_MAX),
            "LoRAs to apply.",
            flag=CommandFlag(name="--lora", help="one of --loras; may be repeated", metavar="NAME[:WEIGHT]"),
            notes=f"or `path` for `name`; `scale` from −{LORA_WEIGHT_MAX:g} to {LORA_WEIGHT_MAX:g}, 1 if absent",
        ),
    ] = ()
    negative_prompt: Annotated[
        str,
        Parameter(
            Text(PROMPT_MAX_CHARS),
            "What not to draw.",
            guided=True,
            flag=CommandFlag(name="--negative", help="what the picture should not show (full only)", metavar="PROMPT"),
        ),
    ] = ""
    guidance: Annotated[
        float | None,
        Parameter(
            Number(0, GUIDANCE_MAX),
            "How closely to follow the prompt; absent, the model's own.",
            name="guidance_scale",
            guided=True,
            flag=CommandFlag(name="--guidance", help="classifier-free guidance (default: the variant's own)"),
        ),
    ] = None

    def __post_init__(self) -> None:
        if not self.prompt_text.strip():
            raise MissingInput("prompt is empty; accepted: a text that says what to draw", field="prompt")
        for value, (name, smallest, largest, accepted) in zip(_BOUNDED(self), _BOUNDS, strict=True):
            if value is not None and not smallest <= value <= largest:
                raise refused(name, value, accepted)
        if self.mask is not None and self.image is None:
            raise MissingInput(MASK_ALONE, field="mask")

    @property
    def prompt_text(self) -> str:
        """The prompt itself, whatever single text encoders are told instead."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt.prompt

    @property
    def pixels(self) -> int:
        """Pixels of all its images together."""
        return self.size.width * self.size.height * self.num_images

    def steps_of(self, model: str) -> int:
        """Steps of each of its images, by this model of the API."""
        variant = MODELS.get(model)
        return self.steps or (variant.steps if variant else USUAL_STEPS)

    def work(self, model: str) -> int:
        """What its images cost with this model, in pixel steps."""
        return self.pixels * self.steps_of(model)

    def to_json(self) -> dict[str, Any]:
        """Give the JSON object that the row keeps, by the API's names."""
        values = dict(zip(_ROW_NAMES, _ALL(self), strict=True))
        for name, to_json in _TO_JSON:
            values[name] = to_json(values[name])
        return values

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Undo `to_json`, that of earlier releases too: what a row does not say has its default here."""
        values = dict(row)
        for name, from_json in _FROM_JSON:
            if name in row:
                values[name] = from_json(row[name])
        for name, attribute in _RENAMED:
            if name in values:
                values[attribute] = values.pop(name)
        return cls(**values)


PARAMETERS = declared(ImageRequest)
"""Every parameter of a generation, in the order of the API's documents."""
BY_NAME = by_name(PARAMETERS)
BY_ATTRIBUTE = {parameter.attribute: parameter for parameter in PARAMETERS}
MASK_ALONE = "mask is given without an image; accepted: a mask of the image to change"

_ROW_NAMES = tuple(parameter.name for parameter in PARAMETERS)
_ALL = attrgetter(*(parameter.attribute for parameter in PARAMETERS))
_RENAMED = tuple((p.name, p.attribute) for p in PARAMETERS if p.name != p.attribute)
_TO_JSON = tuple((p.name, p.kind.to_json) for p in PARAMETERS if isinstance(p.kind, Dimensions | Loras))
_FROM_JSON = tuple((p.name, p.kind.from_json) for p in PARAMETERS if not isinstance(p.kind, AsItIs))
_SIDE = (1, SIDE_MAX_PX, f"a whole number from 1 to {SIDE_MAX_PX}")
_BOUNDS = (
    *(
        (p.attribute, 0 if p.attribute == "seed" else p.kind.smallest, p.kind.largest, p.kind.accepted)
        for p in PARAMETERS
        if isinstance(p.kind, Whole | Number)
    ),
    ("width", *_SIDE),
    ("height", *_SIDE),
)
_BOUNDED = attrgetter(*(name for name, *_ in _BOUNDS[:-2]), "size.width", "size.height")


def random_seed() -> int:
    """Choose the seed of a request that names none."""
    return secrets.randbelow(RANDOM_SEEDS)
