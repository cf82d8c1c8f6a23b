"""The tables: every setting is a field of one of them, with what it accepts in its annotation, and its default.

A table is plain frozen values, which go to whoever needs them. Does not know where values come from, nor looks at them:
`sources.py` reads and checks them, and makes a field's variable and flag from its name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_type_hints

from hidream.errors import ConfigurationError
from hidream.parts import NAMED_ALONE
from hidream.settings.accepted import Between, Like
from hidream.types import Variant, WeightFormat

DAY_S = 86_400
"""The longest time that a setting may name: a request or a task that is older is not waited for by anybody."""

_VARIANT = f"({'|'.join(Variant)})"


@dataclass(frozen=True, slots=True)
class Models:
    """Which checkpoints are served; without any of dev, full and fast the embedded model, nano.

    What can be a file may be in any format of docs/MODELS.md.
    """

    dev: Path | None = None
    """HiDream-I1-Dev: a folder in the diffusers layout, or a single file of its transformer."""
    full: Path | None = None
    """HiDream-I1-Full, likewise."""
    fast: Path | None = None
    """HiDream-I1-Fast, likewise."""
    llama: Path | None = None
    """Llama-3.1-8B-Instruct, a folder or a file, when the checkpoint has no text_encoder_4 and tokenizer_4."""
    t5: Path | None = None
    """T5-XXL's encoder, a folder or a file, when the checkpoint is a single file."""
    clip_l: Path | None = None
    """HiDream's CLIP-L, likewise."""
    clip_g: Path | None = None
    """HiDream's CLIP-G, likewise."""
    vae: Path | None = None
    """The autoencoder, likewise."""
    tokenizers: Path | None = None
    """Folder with tokenizer, tokenizer_2, tokenizer_3 and tokenizer_4, likewise."""
    loras: Path | None = None
    """Folder of LoRAs; a request names one by its file's name without the ending."""

    @property
    def configured(self) -> dict[Variant, Path]:
        """The variants that have a checkpoint; none of them means that the embedded model is served."""
        wholes = {Variant.DEV: self.dev, Variant.FULL: self.full, Variant.FAST: self.fast}
        return {variant: path for variant, path in wholes.items() if path is not None}

    def parts(self, variant: Variant) -> dict[str, Path]:
        """Path of each part of a variant's checkpoint that is named; without "folder" all else is the embedded model's.

        Raises ConfigurationError when other variants have a checkpoint, but not this.
        """
        wholes = self.configured
        if wholes and variant not in wholes:
            raise ConfigurationError(
                f"no checkpoint is configured for {variant}; accepted: a folder or a file in `[models] {variant}`"
            )
        named = {name: getattr(self, name) for name in (*(part.setting for part in NAMED_ALONE), "tokenizers")}
        return {name: path for name, path in {"folder": wholes.get(variant), **named}.items() if path is not None}


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and in which type the model computes."""

    device: Annotated[str, Like(r"auto|cpu|mps|cuda(:\d{1,2})?", "auto, cpu, mps, cuda or cuda:N")] = "auto"
    """A torch device; auto is cuda, then mps, then cpu."""
    dtype: Annotated[str, Like("auto|float32|bfloat16|float16", "auto, float32, bfloat16, float16")] = "auto"
    """float32, bfloat16 or float16; auto is float32 on a CPU, bfloat16 elsewhere."""
    compiled: Annotated[str, Like("auto|on|off", "auto, on or off")] = "auto"
    """Whether torch.compile makes the transformer's blocks; auto is on for cuda, unless the blocks are streamed."""
    storage: Annotated[str, Like("|".join(("auto", *WeightFormat)), ", ".join(("auto", *WeightFormat)))] = "auto"
    """compute, stored, fp8, int8 or nf4: how the large matrices are kept; auto takes what fits best."""
    memory_gb: Annotated[float, Between(1, 100_000, or_zero=True)] = 0.0  # below 1, CUDA itself takes most
    """GB of the device that may be used; 0 is what it has."""
    texts_together: Annotated[str, Like("on|off", "on or off")] = "off"
    """Whether prompts of requests that begin at once are encoded in one batch; then an image's last bits depend on
    who else began."""
    threads: Annotated[int, Between(0, 1024)] = 0  # OpenMP ends the process at some tens of thousands
    """CPU threads of the worker; 0 leaves the choice to torch."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How a worker generates many images, one step at a time."""

    policy: Annotated[str, Like("srpt|fifo", "srpt, fifo")] = "srpt"
    """Who goes first: srpt, who has the least work left; fifo, who came first."""
    tokens_per_step: Annotated[int, Between(0, 10_000_000)] = 0  # 1,000 images of 1536² are 9,216,000
    """Image and text tokens of one step; 0 measures at the start how many keep the device busy."""
    requests_max: Annotated[int, Between(0, 1000)] = 0  # no more than a worker may claim
    """Images that may be begun and not finished; 0 is as many as memory allows."""
    ageing: Annotated[float, Between(0.001, 1000)] = 0.1  # from nearly none to nearly fifo
    """Work that a waiting image makes up for while the engine does 1; srpt only. Less makes large ones wait."""
    memory_gb: Annotated[float, Between(0.01, 100_000, or_zero=True)] = 0.0  # 10 MB are a few small images of nano
    """GB for what begun images hold; 0 is half of what is free once the model is loaded, less a step."""


_ORIGIN = r"https?://[\w.:\[\]-]+"


@dataclass(frozen=True, slots=True)
class Server:
    """The HTTP side."""

    host: Annotated[str, Like(r"[\w:%-]{1,63}(\.[\w:%-]{1,63}){0,9}", "an address, or a host's name")] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Between(0, 65_535)] = 8000
    """Port to listen on; 0 takes a free one."""
    public_url: Annotated[
        str, Like(r"(https?://[\w.:/\[\]%~-]+)?", "http://HOST or https://HOST, with a path or without")
    ] = ""
    """Base of the URLs in answers; empty takes it from each request's headers."""
    queue_max: Annotated[int, Between(0, 1_000_000_000)] = 1000  # 0 takes nothing more; the end is SQLite's, roughly
    """Unfinished tasks, over all keys, above which a submission is a 429."""
    queue_share: Annotated[float, Between(0.01, 1)] = 0.5  # a hundredth, to no share at all
    """Of queue_max, the most that the tasks of one key may take; above it, its submission is a 429."""
    unserved_s: Annotated[float, Between(1, 365 * DAY_S, or_zero=True)] = float(DAY_S)
    """Seconds after which a task fails that waits for a model no worker serves; 0 lets it wait."""
    connections_max: Annotated[int, Between(8, 1_000_000)] = 2000
    """Connections that may be open at a time; beyond them only /healthz, /readyz and /metrics are answered."""
    streams_max: Annotated[int, Between(1, 1_000_000)] = 500
    """Event streams, long polls and waits of sync mode of one key that may be open, in each API process."""
    reads_per_minute: Annotated[int, Between(0, 1_000_000_000)] = 30_000  # 500 polls a second
    """Requests but submissions and uploads that a key may make a minute, in each API process; 0 is no limit."""
    body_max_bytes: Annotated[int, Between(1024, 2**30)] = 16_777_216  # two photos as base64
    """Largest request body in JSON."""
    upload_max_bytes: Annotated[int, Between(1024, 2**30)] = 20_971_520  # a photo's JPEG has up to 20 MB
    """Largest image that is taken in: as an upload, from a URL, or within a request."""
    sync_timeout_s: Annotated[float, Between(0, DAY_S)] = 90.0
    """How long enable_sync_mode waits before it answers with code 5004."""
    cors_origins: Annotated[
        str, Like(rf"(\*|{_ORIGIN}(, ?{_ORIGIN})*)?", "origins such as https://app.example with commas between, or *")
    ] = ""
    """Pages of which origins may call the API from a browser; * is all of them."""
    balance: Annotated[float, Between(0, 1_000_000_000)] = 1000.0  # some clients submit nothing without credit
    """What /balance says; nothing is ever taken from it."""
    price: Annotated[float, Between(0, 1_000_000)] = 0.0
    """What the price routes say that an image costs, in US dollars; nothing is charged."""
    log_format: Annotated[str, Like("text|json", "text or json")] = "text"
    """How a line of the log is written, by every process: for people, or as a JSON object."""
    metrics: Annotated[str, Like("open|admin|off", "open, admin or off")] = "open"
    """Who may read /metrics: everybody, keys with the scope admin, or nobody."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that owns the model."""

    lease_s: Annotated[float, Between(1, DAY_S)] = 15.0  # in less, a worker that waits for the disk counts as dead
    """A task whose worker has been silent this long is taken up by another."""
    attempts_max: Annotated[int, Between(1, 1000)] = 3
    """A task that ended this many workers fails instead of ending the next; it may be one that was beside it."""
    tasks_max: Annotated[int, Between(1, 1000)] = 8
    """Tasks that are claimed and generated together; half as many more are for keys that have none here."""
    pictures_max: Annotated[float, Between(0.01, 100_000)] = 16.0  # a nano sketch, to more than any machine holds
    """What is left of work that is claimed, in images of 1024*1024 with 28 steps; a single task may be more."""
    finish_s: Annotated[float, Between(0, DAY_S)] = 0.0
    """How long a worker that is told to stop goes on with what it generates, before it hands the rest back."""
    serves: Annotated[str, Like(rf"({_VARIANT}( ?, ?{_VARIANT}){{0,2}})?", "dev, full, fast, with commas between")] = ""
    """Variants that this worker loads and serves; empty is all that are configured."""


@dataclass(frozen=True, slots=True)
class Safety:
    """What is flagged."""

    nsfw_threshold: Annotated[float, Between(0, 1)] = 0.8
    """Probability from which an image is flagged, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Store:
    """The database: record and queue in one."""

    database_url: Annotated[
        str,
        Like(
            r"(sqlite\+aiosqlite:///[^?#\x00-\x1f]+|postgresql\+asyncpg://[^\x00-\x20]+)?",
            "sqlite+aiosqlite:///FILE, or postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE",
        ),
    ] = ""
    """SQLAlchemy URL; empty is the SQLite file hidream.db in the home."""
    key_pepper: Annotated[str, Like("([ -~]{16,})?", "16 or more printable ASCII characters")] = field(
        default="", repr=False
    )
    """Secret beside the database, without which its hashes of API keys are worthless; with another no API starts."""
    retention_days: Annotated[float, Between(0.01, 36_500, or_zero=True)] = 7.0  # a quarter of an hour to a century
    """Days after which predictions, their images and uploads are removed; 0 keeps them for ever."""
    free_min_mb: Annotated[int, Between(0, 1_000_000_000)] = 512
    """MB of the disks of database and files below which nothing is taken in any more; 0 does not look."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where images and uploads lie: a folder, or a bucket of an S3-compatible store."""

    url: Annotated[str, Like(r"[^\x00-\x1f]*", "the path of a folder, file:///path or s3://bucket/prefix")] = ""
    """A folder's path, or s3://bucket/prefix; empty is the home. Below it come outputs and uploads."""
    endpoint: Annotated[str, Like(r"(https?://[^\x00-\x20]+)?", "an http or https URL")] = ""
    """URL of the bucket's store; empty is what AWS's variables say, or AWS itself."""
    region: Annotated[str, Like(r"[\w-]*", "a region's name")] = ""
    """The bucket's region; empty is what AWS's variables say."""
    access_key_id: Annotated[str, Like("[!-~]*", "printable ASCII characters")] = ""
    """Key of the store; empty is what AWS's variables or the machine's role say."""
    secret_access_key: Annotated[str, Like("[!-~]*", "printable ASCII characters")] = field(default="", repr=False)
    """The secret that belongs to it."""
    signed_urls: Annotated[str, Like("on|off", "on or off")] = "off"
    """Whether clients get signed URLs of the bucket instead of URLs of this server."""
    public_endpoint: Annotated[str, Like(r"(https?://[^\x00-\x20]+)?", "an http or https URL")] = ""
    """The endpoint in signed URLs, where clients reach the store by another one."""


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Who may be called, and how many at a time."""

    allowed: Annotated[str, Like(r"[\w.:/, -]*", "networks, addresses and host names, with commas between")] = ""
    """Targets that may be called although they are not public: 10.1.0.0/16, intranet.example."""
    together_max: Annotated[int, Between(1, 1000)] = 32  # each is an open connection
    """Deliveries that one API process makes at a time."""


@dataclass(frozen=True, slots=True)
class Mcp:
    """Which server `hidream mcp` speaks to; its key is HIDREAM_API_KEY."""

    url: Annotated[str, Like(r"https?://[\w.:/\[\]%~-]+", "http://HOST or https://HOST, with a path or without")] = (
        "http://127.0.0.1:8000"
    )
    """Base URL of a hidream server."""
    timeout_s: Annotated[float, Between(1, DAY_S)] = 600.0  # an image in a full queue; clients give up before
    """How long an image is waited for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one process."""

    home: Path
    api_key: str = field(default="", repr=False)
    models: Models = Models()
    compute: Compute = Compute()
    engine: Engine = Engine()
    server: Server = Server()
    worker: Worker = Worker()
    safety: Safety = Safety()
    store: Store = Store()
    outputs: Outputs = Outputs()
    webhooks: Webhooks = Webhooks()
    mcp: Mcp = Mcp()

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the store, asynchronous driver included."""
        return self.store.database_url or f"sqlite+aiosqlite:///{self.home / 'hidream.db'}"

    @property
    def hash_cache(self) -> Path:
        """File that remembers the digests of large weights."""
        return self.home / "hashes.json"

    @property
    def outputs_url(self) -> str:
        """Folder or bucket of all files: `outputs/location.open_object_store` opens it."""
        return self.outputs.url or str(self.home)

    @property
    def outputs_dir(self) -> Path:
        """Folder of the finished images."""
        return self.home / "outputs"


TABLES = {
    f.name: get_type_hints(Settings)[f.name] for f in dataclasses.fields(Settings) if f.name not in ("home", "api_key")
}
"""Name of each table in the TOML file to its dataclass."""

SECRETS = frozenset({("store", "key_pepper"), ("outputs", "secret_access_key")})
"""Settings whose values no error shows."""
