"""The tables of settings: each field is a setting; its annotation has what it accepts, beside its default.

A table is a frozen dataclass of plain values. This module does not know where values come from, and does not check
them: `sources.py` reads and checks them, and derives the variable and the flag of a field from its name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_type_hints

from hidream.errors import ConfigurationError
from hidream.parts import NAMED_ALONE
from hidream.settings.accepted import Pattern, Range
from hidream.types import Variant, WeightFormat

DAY_S = 86_400
"""The longest time of most settings: no client waits longer for a request or a task."""

_VARIANT = f"({'|'.join(Variant)})"


@dataclass(frozen=True, slots=True)
class Models:
    """The checkpoints that are served; without dev, full and fast it is the embedded model, nano.

    Each but loras may also be an id of the Hugging Face Hub whose files are in its cache, such as
    HiDream-ai/HiDream-I1-Dev or HiDream-ai/HiDream-I1-Dev@main. A file may have any format that docs/MODELS.md lists.
    """

    dev: Path | None = None
    """HiDream-I1-Dev: a folder in the diffusers layout, a ComfyUI models folder, or a single transformer file."""
    full: Path | None = None
    """HiDream-I1-Full, in the same forms."""
    fast: Path | None = None
    """HiDream-I1-Fast, in the same forms."""
    llama: Path | None = None
    """Llama-3.1-8B-Instruct, a folder or a file, for checkpoints without text_encoder_4 and tokenizer_4."""
    t5: Path | None = None
    """The T5-XXL encoder, a folder or a file, for checkpoints that are a single file."""
    clip_l: Path | None = None
    """HiDream's CLIP-L, in the same forms."""
    clip_g: Path | None = None
    """HiDream's CLIP-G, in the same forms."""
    vae: Path | None = None
    """The autoencoder, in the same forms."""
    tokenizers: Path | None = None
    """A folder with some of tokenizer, tokenizer_2, tokenizer_3 and tokenizer_4."""
    loras: Path | None = None
    """A folder of LoRAs; a request names a LoRA by its file name without the extension."""

    @property
    def configured(self) -> dict[Variant, Path]:
        """The variants that have a checkpoint; if empty, the embedded model is served."""
        checkpoints = {Variant.DEV: self.dev, Variant.FULL: self.full, Variant.FAST: self.fast}
        return {variant: path for variant, path in checkpoints.items() if path is not None}

    def parts(self, variant: Variant) -> dict[str, Path]:
        """The path of each configured part of a variant; without "folder", the other parts are the embedded model's.

        Raises ConfigurationError if other variants have a checkpoint, but this one does not.
        """
        checkpoints = self.configured
        if checkpoints and variant not in checkpoints:
            raise ConfigurationError(
                f"no checkpoint is configured for {variant}; accepted: a folder or a file in `[models] {variant}`"
            )
        parts = {name: getattr(self, name) for name in (*(part.setting for part in NAMED_ALONE), "tokenizers")}
        return {name: path for name, path in {"folder": checkpoints.get(variant), **parts}.items() if path is not None}


@dataclass(frozen=True, slots=True)
class Compute:
    """The device, types and memory of the model."""

    device: Annotated[str, Pattern(r"auto|cpu|mps|cuda(:\d{1,2})?", "auto, cpu, mps, cuda or cuda:N")] = "auto"
    """A torch device; auto takes the first that is available of cuda, mps, cpu."""
    dtype: Annotated[str, Pattern("auto|float32|bfloat16|float16", "auto, float32, bfloat16, float16")] = "auto"
    """float32, bfloat16 or float16; auto is float32 on a CPU, bfloat16 elsewhere."""
    compiled: Annotated[str, Pattern("auto|on|off", "auto, on or off")] = "auto"
    """Whether to compile the transformer's blocks; auto is on for cuda, unless layers are streamed."""
    storage: Annotated[str, Pattern("|".join(("auto", *WeightFormat)), ", ".join(("auto", *WeightFormat)))] = "auto"
    """Weight format of the large matrices: compute, stored, fp8, int8 or nf4; auto takes the best one that fits."""
    memory_gb: Annotated[float, Range(1, 100_000, or_zero=True)] = 0.0  # CUDA itself takes most of 1 GB
    """GB of device memory that may be used; 0 is all of it."""
    texts_together: Annotated[str, Pattern("on|off", "on or off")] = "off"
    """Whether prompts of requests that begin at the same time are encoded in one batch; then the last bits of an image
    depend on which requests began with it."""
    threads: Annotated[int, Range(0, 1024)] = 0  # with tens of thousands, OpenMP aborts the process
    """CPU threads of the worker; 0 lets torch choose."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How a worker generates many images, one step at a time."""

    policy: Annotated[str, Pattern("srpt|fifo", "srpt, fifo")] = "srpt"
    """Scheduling order: srpt, least remaining work first; fifo, first come, first served."""
    tokens_per_step: Annotated[int, Range(0, 10_000_000)] = 0  # 1,000 images of 1536² are 9,216,000
    """Image and text tokens in one step; 0 measures at startup how many keep the device busy."""
    requests_max: Annotated[int, Range(0, 1000)] = 0  # as many as a worker may claim
    """Images of one variant in progress at a time; 0 is as many as memory allows."""
    ageing: Annotated[float, Range(0.001, 1000)] = 0.1  # from almost none to almost fifo
    """Tokens of work credited to a waiting image for each token computed; srpt only. Less makes large ones wait."""
    memory_gb: Annotated[float, Range(0.01, 100_000, or_zero=True)] = 0.0  # 10 MB are a few small images of nano
    """GB for the state of images in progress; 0 is half of the memory that is free after loading, less one step."""


_ORIGIN = r"https?://[\w.:\[\]-]+"


@dataclass(frozen=True, slots=True)
class Server:
    """The HTTP side."""

    host: Annotated[str, Pattern(r"[\w:%-]{1,63}(\.[\w:%-]{1,63}){0,9}", "an address, or a host name")] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Range(0, 65_535)] = 8000
    """Port to listen on; 0 takes a free one."""
    public_url: Annotated[
        str, Pattern(r"(https?://[\w.:/\[\]%~-]+)?", "http://HOST or https://HOST, with a path or without")
    ] = ""
    """Base of the URLs in responses; empty derives it from the headers of each request."""
    queue_max: Annotated[int, Range(0, 1_000_000_000)] = 1000  # 0 accepts no tasks; the maximum is roughly SQLite's
    """Most unfinished tasks of all keys; further submissions get a 429."""
    queue_share: Annotated[float, Range(0.01, 1)] = 0.5  # from a hundredth to the whole queue
    """Largest share of queue_max for the tasks of one key; further submissions of the key get a 429."""
    unserved_s: Annotated[float, Range(1, 365 * DAY_S, or_zero=True)] = float(DAY_S)
    """Seconds after which a task fails if no worker serves its model; 0 lets it wait."""
    connections_max: Annotated[int, Range(8, 1_000_000)] = 2000
    """Most connections open at a time; beyond it the server answers only /healthz, /readyz and /metrics."""
    streams_max: Annotated[int, Range(1, 1_000_000)] = 500
    """Most event streams, long polls and sync-mode requests of one key open at a time, per API process."""
    reads_per_minute: Annotated[int, Range(0, 1_000_000_000)] = 30_000  # 500 polls a second
    """Requests of one key per minute and API process, not counting submissions and uploads; 0 is no limit."""
    body_max_bytes: Annotated[int, Range(1024, 2**30)] = 16_777_216  # two photos as base64
    """Largest JSON body of a request."""
    upload_max_bytes: Annotated[int, Range(1024, 2**30)] = 20_971_520  # the JPEG of a photo has up to 20 MB
    """Largest input image: as an upload, from a URL, or in a request body."""
    sync_timeout_s: Annotated[float, Range(0, DAY_S)] = 90.0
    """Seconds that enable_sync_mode waits before it responds with code 5004."""
    cors_origins: Annotated[
        str,
        Pattern(rf"(\*|{_ORIGIN}(, ?{_ORIGIN})*)?", "origins such as https://app.example, separated by commas, or *"),
    ] = ""
    """Origins whose pages may call the API from a browser; * is all origins."""
    balance: Annotated[float, Range(0, 1_000_000_000)] = 1000.0  # some clients submit nothing without credit
    """Amount that /balance reports; nothing is ever deducted from it."""
    price: Annotated[float, Range(0, 1_000_000)] = 0.0
    """US dollars that the price routes report for an image; nothing is charged."""
    log_format: Annotated[str, Pattern("text|json", "text or json")] = "text"
    """Log format of every process: text for people, or one JSON object per line."""
    metrics: Annotated[str, Pattern("open|admin|off", "open, admin or off")] = "open"
    """Who may read /metrics: everyone (open), keys with the scope admin, or no one (off)."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that owns the model."""

    lease_s: Annotated[float, Range(1, DAY_S)] = 15.0  # with less, a worker that waits for the disk counts as dead
    """Seconds of silence after which another worker takes over a worker's tasks."""
    attempts_max: Annotated[int, Range(1, 1000)] = 3
    """Workers that a task may lose before it fails; a task beside it may have been the cause."""
    tasks_max: Annotated[int, Range(1, 1000)] = 8
    """Tasks that a worker runs at a time, plus up to half as many of keys that have none among these."""
    pictures_max: Annotated[float, Range(0.01, 100_000)] = (
        16.0  # from a small image of nano to more than any machine holds
    )
    """Remaining work that a worker holds, in images of 1024*1024 with 28 steps; a single task may exceed it."""
    finish_s: Annotated[float, Range(0, DAY_S)] = 0.0
    """Seconds for which a stopping worker continues its tasks before it requeues the rest."""
    serves: Annotated[
        str, Pattern(rf"({_VARIANT}( ?, ?{_VARIANT}){{0,2}})?", "dev, full, fast, separated by commas")
    ] = ""
    """Variants that this worker loads and serves; empty is all configured variants."""


@dataclass(frozen=True, slots=True)
class Safety:
    """The image classifier."""

    nsfw_threshold: Annotated[float, Range(0, 1)] = 0.8
    """Probability at or above which an image is flagged, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Store:
    """The database, which is also the queue."""

    database_url: Annotated[
        str,
        Pattern(
            r"(sqlite\+aiosqlite:///[^?#\x00-\x1f]+|postgresql\+asyncpg://[^\x00-\x20]+)?",
            "sqlite+aiosqlite:///FILE, or postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE",
        ),
    ] = ""
    """SQLAlchemy URL; empty is the SQLite file hidream.db in the home."""
    key_pepper: Annotated[str, Pattern("([ -~]{16,})?", "16 or more printable ASCII characters")] = field(
        default="", repr=False
    )
    """Secret outside the database, without which its key hashes are worthless; an API with another does not start."""
    retention_days: Annotated[float, Range(0.01, 36_500, or_zero=True)] = 7.0  # from a quarter of an hour to a century
    """Days after which predictions, images and uploads are removed; 0 keeps them for ever."""
    free_min_mb: Annotated[int, Range(0, 1_000_000_000)] = 512
    """MB that must be free on the disks of database and files, or submissions are refused; 0 disables the check."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where images and uploads are stored: a folder, or a bucket of an S3-compatible object store."""

    url: Annotated[str, Pattern(r"[^\x00-\x1f]*", "the path of a folder, file:///path or s3://bucket/prefix")] = ""
    """A folder's path, or s3://bucket/prefix; empty is the home. It contains outputs and uploads."""
    endpoint: Annotated[str, Pattern(r"(https?://[^\x00-\x20]+)?", "an http or https URL")] = ""
    """URL of the object store; empty uses AWS_ENDPOINT_URL, or AWS itself."""
    region: Annotated[str, Pattern(r"[\w-]*", "the name of a region")] = ""
    """Region of the bucket; empty uses AWS_REGION."""
    access_key_id: Annotated[str, Pattern("[!-~]*", "printable ASCII characters")] = ""
    """Access key of the object store; empty uses AWS_ACCESS_KEY_ID or the machine's role."""
    secret_access_key: Annotated[str, Pattern("[!-~]*", "printable ASCII characters")] = field(default="", repr=False)
    """The secret of this access key."""
    signed_urls: Annotated[str, Pattern("on|off", "on or off")] = "off"
    """Whether clients get signed URLs of the bucket instead of URLs of this server."""
    public_endpoint: Annotated[str, Pattern(r"(https?://[^\x00-\x20]+)?", "an http or https URL")] = ""
    """Endpoint in signed URLs, if clients reach the object store by another one."""


@dataclass(frozen=True, slots=True)
class Webhooks:
    """The targets of webhooks, and the number of deliveries at a time."""

    allowed: Annotated[str, Pattern(r"[\w.:/, -]*", "networks, addresses and host names, separated by commas")] = ""
    """Targets that are allowed although they are not public: 10.1.0.0/16, intranet.example."""
    together_max: Annotated[int, Range(1, 1000)] = 32  # each has an open connection
    """Concurrent deliveries of one API process."""


@dataclass(frozen=True, slots=True)
class Mcp:
    """The server that `hidream mcp` connects to; its key is HIDREAM_API_KEY."""

    url: Annotated[str, Pattern(r"https?://[\w.:/\[\]%~-]+", "http://HOST or https://HOST, with a path or without")] = (
        "http://127.0.0.1:8000"
    )
    """Base URL of a hidream server."""
    timeout_s: Annotated[float, Range(1, DAY_S)] = 600.0  # for an image in a full queue; clients give up earlier
    """Seconds to wait for an image."""


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
        """SQLAlchemy URL of the database, with an asynchronous driver."""
        return self.store.database_url or f"sqlite+aiosqlite:///{self.home / 'hidream.db'}"

    @property
    def hash_cache(self) -> Path:
        """File that caches the digests of large weight files."""
        return self.home / "hashes.json"

    @property
    def outputs_url(self) -> str:
        """URL of the folder or bucket of all files, for `outputs/location.open_object_store`."""
        return self.outputs.url or str(self.home)


TABLES = {
    f.name: get_type_hints(Settings)[f.name] for f in dataclasses.fields(Settings) if f.name not in ("home", "api_key")
}
"""The dataclass of each table, by its name in the TOML file."""

SECRETS = frozenset({("store", "key_pepper"), ("outputs", "secret_access_key")})
"""Settings whose values errors do not show."""
