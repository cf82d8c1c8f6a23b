"""Settings: read once, at the edge, from flag > environment > TOML file > default.

Every setting is a field of one of the tables below; `[table] key` in the TOML file is `HIDREAM_TABLE_KEY` in
the environment. Four variables stand outside the tables: `HIDREAM_HOME` (where all state lies),
`HIDREAM_CONFIG` (the TOML file, by default `hidream.toml` in the home), `HIDREAM_MODEL` (short for
`HIDREAM_MODELS_DEV`) and `HIDREAM_API_KEY` (the first key). An unknown key or a bad value is an error that
names it.

This room knows nothing of models, servers or databases; it hands frozen values to those who do.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_type_hints

import platformdirs

from hidream.errors import ConfigurationError
from hidream.types import Variant


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

    def parts(self, variant: Variant) -> dict[str, Path] | None:
        """Path of each part of a variant's checkpoint that is named; None is the embedded model.

        Raises ConfigurationError when other variants have a checkpoint, but not this.
        """
        wholes = {Variant.DEV: self.dev, Variant.FULL: self.full, Variant.FAST: self.fast}
        if wholes[variant] is None and any(wholes.values()):
            raise ConfigurationError(
                f"no checkpoint is configured for {variant}; accepted: a folder or a file in `[models] {variant}`"
            )
        if wholes[variant] is None:
            return None
        named = {name: getattr(self, name) for name in ("llama", "t5", "clip_l", "clip_g", "vae", "tokenizers")}
        return {name: path for name, path in {"folder": wholes[variant], **named}.items() if path is not None}


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and in which type the model computes."""

    device: str = "auto"
    """A torch device; auto is cuda, then mps, then cpu."""
    dtype: str = "auto"
    """float32, bfloat16 or float16; auto is float32 on a CPU, bfloat16 elsewhere."""
    storage: str = "auto"
    """compute, stored, fp8, int8 or nf4: how the large matrices are kept; auto takes what fits best."""
    memory_gb: float = 0.0
    """GB of the device that may be used; 0 is what it has."""
    threads: int = 0
    """CPU threads of the worker; 0 leaves the choice to torch."""


@dataclass(frozen=True, slots=True)
class Server:
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    public_url: str = ""
    """Base of the URLs in answers; empty takes it from each request's headers."""
    queue_max: int = 1000
    """Unfinished tasks, over all keys, above which a submission is a 429."""
    body_max_bytes: int = 1_048_576
    """Largest request body."""
    sync_timeout_s: float = 90.0
    """How long enable_sync_mode waits before it answers with code 5004."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that owns the model."""

    lease_s: float = 15.0
    """A task whose worker has been silent this long is taken up by another."""
    attempts_max: int = 3
    """A task that ended this many workers fails instead of ending the next."""


@dataclass(frozen=True, slots=True)
class Safety:
    """What is flagged."""

    nsfw_threshold: float = 0.8
    """Probability from which a picture is flagged, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Store:
    """The database: record and queue in one."""

    database_url: str = ""
    """SQLAlchemy URL; empty is the SQLite file hidream.db in the home."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one process."""

    home: Path
    api_key: str = field(default="", repr=False)
    models: Models = Models()
    compute: Compute = Compute()
    server: Server = Server()
    worker: Worker = Worker()
    safety: Safety = Safety()
    store: Store = Store()

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the store, asynchronous driver included."""
        return self.store.database_url or f"sqlite+aiosqlite:///{self.home / 'hidream.db'}"

    @property
    def hash_cache(self) -> Path:
        """File that remembers the digests of large weights."""
        return self.home / "hashes.json"

    @property
    def outputs_dir(self) -> Path:
        """Folder of the finished pictures."""
        return self.home / "outputs"


TABLES = {
    f.name: get_type_hints(Settings)[f.name] for f in dataclasses.fields(Settings) if f.name not in ("home", "api_key")
}
"""Name of each table in the TOML file to its dataclass."""

_OUTSIDE_TABLES = {"HIDREAM_HOME", "HIDREAM_CONFIG", "HIDREAM_MODEL", "HIDREAM_API_KEY"}


def load(environ: Mapping[str, str], flags: Mapping[str, Mapping[str, object]] | None = None) -> Settings:
    """Settle all settings: `flags` ({table: {key: value}}) over `environ` over the TOML file over the defaults.

    Raises ConfigurationError on an unknown key, a bad value, or a TOML file that cannot be read.
    """
    home = Path(environ.get("HIDREAM_HOME") or platformdirs.user_data_dir("hidream", appauthor=False)).expanduser()
    chosen: dict[str, dict[str, object]] = {name: {} for name in TABLES}
    for layer in (_from_toml(environ, home), _from_environ(environ), flags or {}):
        for table, values in layer.items():
            chosen[table].update(values)
    tables = {name: TABLES[name](**values) for name, values in chosen.items()}
    return Settings(home=home.resolve(), api_key=environ.get("HIDREAM_API_KEY", ""), **tables)


def to_environ(settings: Settings) -> dict[str, str]:
    """Undo `load`: the variables that give a child process the same settings, but for the API key."""
    values = {"HIDREAM_HOME": str(settings.home)}
    for table in TABLES:
        for key, value in dataclasses.asdict(getattr(settings, table)).items():
            values[env_name(table, key)] = "" if value is None else str(value)
    return values


def env_name(table: str, key: str) -> str:
    """The environment variable of a setting."""
    return f"HIDREAM_{table}_{key}".upper()


def _from_toml(environ: Mapping[str, str], home: Path) -> dict[str, dict[str, object]]:
    named = environ.get("HIDREAM_CONFIG")
    path = Path(named).expanduser() if named else home / "hidream.toml"
    if not named and not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"the settings file {path} cannot be read: {error}") from error
    found: dict[str, dict[str, object]] = {}
    for table, values in document.items():
        if table not in TABLES or not isinstance(values, dict):
            raise ConfigurationError(f"{path}: unknown table [{table}]; accepted: {', '.join(TABLES)}")
        found[table] = {key: _value(table, key, value, f"{path}: [{table}] {key}") for key, value in values.items()}
    return found


def _from_environ(environ: Mapping[str, str]) -> dict[str, dict[str, object]]:
    names = {env_name(table, f.name): (table, f.name) for table in TABLES for f in dataclasses.fields(TABLES[table])}
    names["HIDREAM_MODEL"] = ("models", "dev")
    found: dict[str, dict[str, object]] = {}
    for name, text in sorted(environ.items(), reverse=True):  # HIDREAM_MODELS_DEV before its short form, which wins
        if not name.startswith("HIDREAM_") or (name in _OUTSIDE_TABLES and name not in names) or not text:
            continue
        if name not in names:
            raise ConfigurationError(f"unknown environment variable {name}; accepted: {', '.join(sorted(names))}")
        table, key = names[name]
        found.setdefault(table, {})[key] = _value(table, key, text, name)
    return found


def _value(table: str, key: str, value: object, where: str) -> object:
    """Bring one value to its field's type; `where` names it in the error."""
    hints = get_type_hints(TABLES[table])
    if key not in hints:
        raise ConfigurationError(f"{where}: unknown key; accepted in [{table}]: {', '.join(hints)}")
    wanted = hints[key]
    try:
        if wanted is int and not isinstance(value, bool | float):
            return int(value)  # type: ignore[call-overload]
        if wanted is float and not isinstance(value, bool):
            return float(value)  # type: ignore[arg-type]
        if wanted is str and isinstance(value, str):
            return value
        if wanted == Path | None and isinstance(value, str):
            return Path(value).expanduser()
    except (TypeError, ValueError):
        pass
    accepted = {int: "a whole number", float: "a number", str: "a text"}.get(wanted, "a path")
    raise ConfigurationError(f"{where} is {value!r}; accepted: {accepted}")
