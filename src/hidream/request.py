"""The parameters of a generation: `ImageRequest` declares each of them once.

Everything else is derived from it: how each version of the API reads a body (`server/parameters`), the OpenAPI document
and the schema of `GET /models` (`server/schema`), the database row, the worker's request to the model, the flags of
`hidream generate` (`commands/parameter_flags`), the schema of the MCP tool, and the tables of docs/API.md
(`make tables`).
CONTRIBUTING.md describes how to add a parameter. Standard library only.
"""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Self, TypeVar

from hidream.errors import InvalidInput, MissingInput
from hidream.parameter import (
    Boolean,
    Choice,
    CommandFlag,
    Integer,
    Number,
    OverlongText,
    Parameter,
    PlainJson,
    Schema,
    Text,
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
    """The prompt of an image, and other prompts for single text encoders.

    None means the prompt itself. An empty text stays empty (the reference treats it as None).
    """

    prompt: str
    clip_l: str | None = None
    clip_g: str | None = None
    t5: str | None = None
    llama: str | None = None

    @property
    def each(self) -> tuple[str, str, str, str]:
        """The prompts of CLIP-L, CLIP-G, T5 and Llama."""
        clip_l, clip_g, t5, llama = (
            self.prompt if own is None else own for own in (self.clip_l, self.clip_g, self.t5, self.llama)
        )
        return clip_l, clip_g, t5, llama


_LORA_NAME = Text(PROMPT_MAX_CHARS, what="the name of a configured LoRA")
_LORA_WEIGHT = Number(-LORA_WEIGHT_MAX, LORA_WEIGHT_MAX)


T = TypeVar("T")


def unchecked(cls: type[T], **values: Any) -> T:  # noqa: ANN401 - the value of any field
    """Create a frozen dataclass from the values of all its fields, without its checks."""
    created = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(created, name, value)
    return created


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
class Source(PlainJson):
    """The location or the content of an image file; the server resolves it."""

    @property
    def accepted(self) -> str:
        """The accepted forms."""
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
    """A list of {"name", "scale"}. WaveSpeed's clients write "path", which is never a path on the server here."""

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
                "name": {"type": "string", "description": "The name of a configured LoRA.", "minLength": 1},
                "path": {"type": "string", "description": "Another name of `name`."},
                "scale": {**_LORA_WEIGHT.schema(), "description": "How strongly the LoRA is applied.", "default": 1},
            },
            "anyOf": [{"required": ["name"]}, {"required": ["path"]}],
        }
        return {"type": "array", "items": lora, "maxItems": self.most}

    def to_json(self, value: tuple[LoraUse, ...]) -> list[dict[str, object]]:
        """Write what `read` reads."""
        return [{"name": lora.name, "scale": lora.weight} for lora in value]

    def from_json(self, value: list[dict[str, Any]]) -> tuple[LoraUse, ...]:
        """Undo `to_json`."""
        return tuple(unchecked(LoraUse, name=lora["name"], weight=lora["scale"]) for lora in value)


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A request for images. Each parameter is declared here, and nowhere else.

    A field's `Parameter` gives its type, bounds, description and names. The field's default is also the API's default,
    unless `server/parameters` has another one for a version. The database row stores this object, and the worker passes
    it to the model, once for each image. The model ignores the fields that control the delivery of images.

    `steps`, `guidance`, `shift` and `sampler` of None mean the preset of the variant (`SAMPLING_PRESETS`). `seed` is
    the seed that is used. The caller chooses a random one before it makes the request, so that the seed can be stored
    first.

    `image` is the content of the init image. In a request from a client it is the name of an upload, and it is empty if
    the pixels are passed beside the request. The same holds for `mask`. `strength` is the share of the steps that are
    run: 1 ignores the details of the image, a value near 0 hardly changes it. The mask has the size of the image. It is
    white where the image may change; if any part of the mask is transparent, it is transparent there instead. Without a
    mask, the transparent parts of the image may change. `prompt` may give single text encoders other prompts.

    Raises InvalidInput, or MissingInput without a prompt.
    """

    prompt: Annotated[
        str | Prompts, Parameter(Text(PROMPT_MAX_CHARS, may_be_empty=False), "What the image shows.", documented=True)
    ]
    size: Annotated[
        Size,
        Parameter(
            Dimensions(SIDE_MIN_PX, SIDE_MAX_PX),
            "Width*height in pixels, each {smallest} to {largest}.",
            default=DEFAULT_SIZE,
            documented=True,
            flag=CommandFlag(
                name="--size", help=f"width*height in pixels (default: {DEFAULT_SIZE}, or the size of --image)"
            ),
            notes="the image has exactly this size",
        ),
    ]
    seed: Annotated[
        int,
        Parameter(
            Integer(-1, SEED_MAX),
            "The same seed gives the same image; -1 chooses a random seed.",
            default=-1,
            documented=True,
            flag=CommandFlag(name="--seed", help=f"0 to {SEED_MAX}; -1 chooses a random seed (default)"),
            notes="−1 chooses a random seed",
        ),
    ]
    enable_base64_output: Annotated[
        bool,
        Parameter(
            Boolean(),
            "Return the images as base64 instead of URLs.",
            documented=True,
            notes="`outputs` contains plain base64 instead of URLs",
        ),
    ] = False
    enable_safety_checker: Annotated[
        bool,
        Parameter(
            Boolean(),
            "Check the prompt and flag unsafe images.",
            documented=True,
            notes="see [SAFETY.md](SAFETY.md)",
        ),
    ] = True
    enable_sync_mode: Annotated[
        bool,
        Parameter(
            Boolean(),
            "Respond when the images are finished.",
            documented=True,
            notes="the response waits for the images, for up to `sync_timeout_s`",
        ),
    ] = False
    output_format: Annotated[
        ImageFormat,
        Parameter(
            Choice(ImageFormat, FORMAT_NAMES),
            "The file format of the images.",
            documented=True,
            flag=CommandFlag(name="--format", help="format of the files, if --out does not say it (default: png)"),
        ),
    ] = ImageFormat.PNG
    num_images: Annotated[
        int,
        Parameter(
            Integer(1, IMAGES_MAX),
            "The number of images, with seed, seed + 1, and so on.",
            flag=CommandFlag(
                name="--num-images", short=("-n",), metavar="N", help="number of images, with seed, seed + 1, and so on"
            ),
            notes="the images have the seeds `seed`, `seed` + 1, and so on",
        ),
    ] = 1
    output_quality: Annotated[
        int | None,
        Parameter(
            Integer(1, QUALITY_MAX),
            f"The quality of {_LOSSY} files.",
            shown_default=_QUALITIES,
            flag=CommandFlag(
                name="--quality", help=f"quality of {_LOSSY} files, 1 to {QUALITY_MAX} (default: {_QUALITIES})"
            ),
            notes="PNG is lossless and has no quality",
        ),
    ] = None
    image: Annotated[
        bytes | str | None,
        Parameter(
            Source(),
            "An image to start from: a URL, a data: URI, base64, or the download_url of an upload.",
            flag=CommandFlag(name="--image", help="an image to start from"),
            notes="[an image](#images-to-start-from) to start from",
        ),
    ] = None
    strength: Annotated[
        float,
        Parameter(
            Number(STRENGTH_MIN, 1),
            "How much of the image may change.",
            flag=CommandFlag(name="--strength", help="how much of --image may change, up to 1 (default: %(default)s)"),
            notes="how much of `image` may change",
        ),
    ] = STRENGTH
    mask: Annotated[
        bytes | str | None,
        Parameter(
            Source(),
            "An image of the size of `image`, white or transparent where `image` may change.",
            flag=CommandFlag(
                name="--mask", help="an image of the size of --image, white or transparent where --image may change"
            ),
            notes="as large as `image`; [white or transparent](#images-to-start-from) where `image` may change",
        ),
    ] = None
    steps: Annotated[
        int | None,
        Parameter(
            Integer(1, STEPS_MAX),
            "The number of denoising steps; default: that of the model.",
            name="num_inference_steps",
            flag=CommandFlag(name="--steps", help="number of denoising steps (default: that of the variant)"),
        ),
    ] = None
    shift: Annotated[
        float | None,
        Parameter(
            Number(SHIFT_MIN, SHIFT_MAX),
            "The shift of the noise schedule; default: that of the model.",
            flag=CommandFlag(name="--shift", help="shift of the noise schedule (default: that of the variant)"),
            notes="the shift of the noise schedule",
        ),
    ] = None
    sampler: Annotated[
        Sampler | None,
        Parameter(
            Choice(Sampler),
            "The sampler; default: that of the model.",
            flag=CommandFlag(name="--sampler", help="the sampler (default: that of the variant)"),
        ),
    ] = None
    conformance: Annotated[
        Conformance,
        Parameter(
            Choice(Conformance),
            "Follow the schedule of diffusers or of the official code, where they differ.",
            flag=CommandFlag(name="--conformance", help="follow the schedule of diffusers or of the official code"),
            notes="which code's schedule to follow, where they differ ([REFERENCES.md](REFERENCES.md))",
        ),
    ] = Conformance.DIFFUSERS
    render: Annotated[
        Render,
        Parameter(
            Choice(Render),
            "The shape in which the model generates the image.",
            flag=CommandFlag(name="--render", help="the shape in which the model generates the image"),
            notes="the shape in which the model generates the image ([MODELS.md](MODELS.md#sizes-and-render))",
        ),
    ] = Render.BEST
    mode: Annotated[
        Mode,
        Parameter(
            Choice(Mode),
            "How much quality may be traded for speed.",
            flag=CommandFlag(name="--mode", help="how much quality may be traded for speed (default: %(default)s)"),
            notes="how much quality may be traded for speed; `version` contains it",
        ),
    ] = Mode.EXACT
    loras: Annotated[
        tuple[LoraUse, ...],
        Parameter(
            Loras(LORAS_MAX),
            "LoRAs to apply.",
            flag=CommandFlag(
                name="--lora", help="a LoRA from the folder --lora-folder; may be repeated", metavar="NAME[:WEIGHT]"
            ),
            notes=f"or `path` for `name`; `scale` from −{LORA_WEIGHT_MAX:g} to {LORA_WEIGHT_MAX:g}, 1 if absent",
        ),
    ] = ()
    negative_prompt: Annotated[
        str,
        Parameter(
            Text(PROMPT_MAX_CHARS),
            "What the image should not show.",
            guided=True,
            flag=CommandFlag(name="--negative", help="what the image should not show (full only)", metavar="PROMPT"),
        ),
    ] = ""
    guidance: Annotated[
        float | None,
        Parameter(
            Number(0, GUIDANCE_MAX),
            "How closely to follow the prompt; default: that of the model.",
            name="guidance_scale",
            guided=True,
            flag=CommandFlag(
                name="--guidance", help="scale of classifier-free guidance (default: that of the variant)"
            ),
        ),
    ] = None

    def __post_init__(self) -> None:
        if not self.prompt_text.strip():
            raise MissingInput("prompt is empty; accepted: a text that describes the image", field="prompt")
        for value, (name, smallest, largest, accepted) in zip(_BOUNDED(self), _BOUNDS, strict=True):
            if value is not None and not smallest <= value <= largest:
                raise refused(name, value, accepted)
        if self.mask is not None and self.image is None:
            raise MissingInput(MASK_ALONE, field="mask")

    @property
    def prompt_text(self) -> str:
        """The prompt itself, without the prompts of single text encoders."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt.prompt

    @property
    def pixels(self) -> int:
        """The number of pixels of all its images together."""
        return self.size.width * self.size.height * self.num_images

    def steps_of(self, model: str) -> int:
        """The number of steps for each image with this model of the API."""
        variant = MODELS.get(model)
        return self.steps or (variant.steps if variant else USUAL_STEPS)

    def work(self, model: str) -> int:
        """The cost of all its images with this model, in pixel steps."""
        return self.pixels * self.steps_of(model)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the row stores, with the API's names."""
        values = dict(zip(_ROW_NAMES, _ALL(self), strict=True))
        for name, to_json in _TO_JSON:
            values[name] = to_json(values[name])
        return values

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Undo `to_json`. Rows of earlier releases may lack fields, which get their defaults.

        Bounds are not checked: a row of a release with wider ones stays readable.
        """
        values = dict(row)
        for name, from_json in _FROM_JSON:
            if name in row:
                values[name] = from_json(row[name])
        for name, attribute in _RENAMED:
            if name in values:
                values[attribute] = values.pop(name)
        return unchecked(cls, **_DEFAULTS | values)


PARAMETERS = declared(ImageRequest)
"""Every parameter of a generation, in the order of the API documents."""
BY_NAME = by_name(PARAMETERS)
MASK_ALONE = "mask is given without an image; accepted: a mask of the image to change"

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(ImageRequest) if f.default is not dataclasses.MISSING}
_ROW_NAMES = tuple(parameter.name for parameter in PARAMETERS)
_ALL = attrgetter(*(parameter.attribute for parameter in PARAMETERS))
_RENAMED = tuple((p.name, p.attribute) for p in PARAMETERS if p.name != p.attribute)
_TO_JSON = tuple((p.name, p.kind.to_json) for p in PARAMETERS if isinstance(p.kind, Dimensions | Loras))
_FROM_JSON = tuple((p.name, p.kind.from_json) for p in PARAMETERS if not isinstance(p.kind, PlainJson))
_SIDE = (1, SIDE_MAX_PX, f"a whole number from 1 to {SIDE_MAX_PX}")
_BOUNDS = (
    *(
        (p.attribute, 0 if p.attribute == "seed" else p.kind.smallest, p.kind.largest, p.kind.accepted)
        for p in PARAMETERS
        if isinstance(p.kind, Integer | Number)
    ),
    ("width", *_SIDE),
    ("height", *_SIDE),
)
_BOUNDED = attrgetter(*(name for name, *_ in _BOUNDS[:-2]), "size.width", "size.height")


def random_seed() -> int:
    """Choose the seed of a request that has none."""
    return secrets.randbelow(RANDOM_SEEDS)
