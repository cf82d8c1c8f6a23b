"""Reading settings: flag > environment > TOML file > default; and writing them back into an environment.

`[table] key` in the TOML file is `HIDREAM_TABLE_KEY` in the environment and, if the command has it, the flag `--key`.
Five variables are outside the tables: `HIDREAM_HOME` (the folder of all state), `HIDREAM_CONFIG` (the TOML file, by
default `hidream.toml` in the home), `HIDREAM_MODEL` (short for `HIDREAM_MODELS_DEV`), `HIDREAM_API_KEY` (the first
key) and `HIDREAM_BASE_URL` (the server of `hidream.Client`). An unknown key or a bad value is an error that names it;
`_value` checks the values of all sources. Variables that Kubernetes or Docker set are ignored, and `ignored_variables`
returns their names for the log.

This module knows the settings and what they accept from `tables.py` only, and does not know what they mean.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_type_hints

import platformdirs

from hidream.errors import ConfigurationError
from hidream.nearest import nearest
from hidream.settings.injected import injected
from hidream.settings.tables import SECRETS, TABLES, Settings
from hidream.types import Variant

_OUTSIDE_TABLES = {"HIDREAM_HOME", "HIDREAM_CONFIG", "HIDREAM_MODEL", "HIDREAM_API_KEY", "HIDREAM_BASE_URL"}


def load(environ: Mapping[str, str], flags: Mapping[str, Mapping[str, object]] | None = None) -> Settings:
    """Load all settings: `flags` ({table: {key: value}}) over `environ` over the TOML file over the defaults.

    Raises ConfigurationError on an unknown key, a bad value, or a TOML file that cannot be read.
    """
    folder = home(environ)
    chosen: dict[str, dict[str, object]] = {name: {} for name in TABLES}
    for layer in (_from_toml(environ, folder), _from_environ(environ), _from_flags(flags or {})):
        for table, values in layer.items():
            chosen[table].update(values)
    tables = {name: TABLES[name](**values) for name, values in chosen.items()}
    return Settings(home=folder.resolve(), api_key=_api_key(environ), **tables)


def ignored_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the names of variables that look like settings, but were set by Kubernetes or Docker."""
    return sorted(name for name, text in environ.items() if text and injected(name, text))


def to_environ(settings: Settings) -> dict[str, str]:
    """The inverse of `load`: the variables that give a child process the same settings.

    The API key and the pepper are left out, because a worker does not need them.
    """
    values = {"HIDREAM_HOME": str(settings.home)}
    for table in TABLES:
        for key, value in dataclasses.asdict(getattr(settings, table)).items():
            if key != "key_pepper":
                values[env_name(table, key)] = "" if value is None else str(value)
    return values


def env_name(table: str, key: str) -> str:
    """The environment variable of a setting."""
    return f"HIDREAM_{table}_{key}".upper()


def flag_name(table: str, key: str) -> str:
    """The flag of a setting; all variants' checkpoints have the flag `--model`, and `--lora` names one of `loras`."""
    if (table, key) == ("models", "loras"):
        return "--lora-folder"
    return "--model" if table == "models" and key in list(Variant) else f"--{key.replace('_', '-')}"


def home(environ: Mapping[str, str]) -> Path:
    """The folder of all state, which need not exist yet. Raises ConfigurationError if HIDREAM_HOME is a file."""
    text = environ.get("HIDREAM_HOME")
    if not text:
        return Path(platformdirs.user_data_dir("hidream", appauthor=False))
    folder = _path(text, "HIDREAM_HOME")
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"HIDREAM_HOME is {text!r:.100}, which is a file; accepted: a folder, or a new path")
    return folder


def settings_file(environ: Mapping[str, str], folder: Path) -> Path:
    """The path of the TOML file, by default in the home folder; it need not exist."""
    text = environ.get("HIDREAM_CONFIG")
    return _path(text, "HIDREAM_CONFIG") if text else folder / "hidream.toml"


def _api_key(environ: Mapping[str, str]) -> str:
    """The first key; an error about it does not show it."""
    key = environ.get("HIDREAM_API_KEY", "")
    if key != key.strip() or not key.isprintable():
        raise ConfigurationError(
            "HIDREAM_API_KEY starts or ends with a space, or has characters that are not printable, so no request "
            "could send it; accepted: printable characters, without spaces at either end"
        )
    return key


def _from_toml(environ: Mapping[str, str], folder: Path) -> dict[str, dict[str, object]]:
    path = settings_file(environ, folder)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not environ.get("HIDREAM_CONFIG"):
            return {}
        raise ConfigurationError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not TOML, not UTF-8, an endless number
        raise ConfigurationError(f"the settings file {path} cannot be read: {error}") from error
    found: dict[str, dict[str, object]] = {}
    for table, values in document.items():
        if table in TABLES and not isinstance(values, dict):
            raise ConfigurationError(f"{path}: {table} is {values!r:.60}; accepted: one table [{table}]")
        if table not in TABLES:
            suggestion = nearest(table, _keys() | {name: f"[{name}]" for name in TABLES})
            raise ConfigurationError(f"{path}: unknown table [{table}]{suggestion}; accepted: {', '.join(TABLES)}")
        found[table] = {key: _value(table, key, value, f"{path}: [{table}] {key}") for key, value in values.items()}
    return found


def _from_environ(environ: Mapping[str, str]) -> dict[str, dict[str, object]]:
    names = {env_name(table, f.name): (table, f.name) for table in TABLES for f in dataclasses.fields(TABLES[table])}
    names["HIDREAM_MODEL"] = ("models", "dev")
    found: dict[str, dict[str, object]] = {}
    for name, text in sorted(environ.items(), reverse=True):  # HIDREAM_MODELS_DEV before its short form, which wins
        if not name.startswith("HIDREAM_") or (name in _OUTSIDE_TABLES and name not in names) or not text:
            continue
        if injected(name, text):
            continue
        if name not in names:
            raise ConfigurationError(
                f"unknown environment variable {name}{_near_variable(name)}; accepted: HIDREAM_TABLE_KEY for each key "
                f"of the tables in docs/SETTINGS.md, and {', '.join(sorted(_OUTSIDE_TABLES))}"
            )
        table, key = names[name]
        found.setdefault(table, {})[key] = _value(table, key, text, name)
    return found


def _near_variable(name: str) -> str:
    """Return the suggestion for an unknown variable; its table may be missing."""
    settings = [(table, f.name) for table in TABLES for f in dataclasses.fields(TABLES[table])]
    known = {key: env_name(table, key) for table, key in settings}
    known |= {f"{table}_{key}": env_name(table, key) for table, key in settings}
    known |= {name.removeprefix("HIDREAM_").lower(): name for name in _OUTSIDE_TABLES}
    return nearest(name.removeprefix("HIDREAM_"), known)


def _keys() -> dict[str, str]:
    """The table and key of each setting, by key."""
    return {f.name: f"[{table}] {f.name}" for table in TABLES for f in dataclasses.fields(TABLES[table])}


def _from_flags(flags: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    return {
        table: {key: _value(table, key, value, flag_name(table, key)) for key, value in values.items()}
        for table, values in flags.items()
    }


def _value(table: str, key: str, value: object, where: str) -> object:
    """Convert a value to the type of its field, and check that the field accepts it; `where` names it in errors."""
    hints = get_type_hints(TABLES[table], include_extras=True)
    if key not in hints:
        suggestion = nearest(key, _keys() | {each: each for each in hints})
        raise ConfigurationError(f"{where}: unknown key{suggestion}; accepted in [{table}]: {', '.join(hints)}")
    kind, accepted = get_args(hints[key])
    if kind is Path:
        if isinstance(value, str) and value:
            return _path(value, where)
        raise ConfigurationError(f"{where} is {_shown(value)}; accepted: a path")
    try:
        typed = _typed(kind, value)
        if accepted.holds(typed):
            return typed
    except (TypeError, ValueError, OverflowError):
        pass
    prefix = {int: "a whole number, ", float: "a number, "}.get(kind, "")
    shown = "not shown" if (table, key) in SECRETS else _shown(value)
    raise ConfigurationError(f"{where} is {shown}; accepted: {prefix}{accepted}")


def _typed(kind: type, value: object) -> object:
    """Convert a value to a type. Raises TypeError, ValueError or OverflowError.

    Surrogates are refused too: bytes of the environment that are not UTF-8 become surrogates.
    """
    if kind is int and not isinstance(value, bool | float):
        return int(value)  # type: ignore[call-overload]
    if kind is float and not isinstance(value, bool):
        return float(value)  # type: ignore[arg-type]
    if kind is str and isinstance(value, str):
        value.encode()
        return value
    raise TypeError(f"{type(value)} is not {kind}")


def _path(text: str, where: str) -> Path:
    """Convert a text to a path that the system can resolve; whether it exists is for its user to check."""
    try:
        path = Path(text).expanduser()
        text.encode()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{where} is {text!r:.100}; accepted: a path that can be followed ({why})") from error
    return path


def _shown(value: object) -> str:
    """Format a value for an error: shortened, and without the password of a URL."""
    return re.sub(r"://[^/]*@", "://***@", repr(value))[:100]
