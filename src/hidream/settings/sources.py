"""Where settings come from: flag > environment > TOML file > default, and back into an environment.

`[table] key` in the TOML file is `HIDREAM_TABLE_KEY` in the environment and, where a command has it, `--key`. Four
variables stand outside the tables: `HIDREAM_HOME` (where all state lies), `HIDREAM_CONFIG` (the TOML file, by default
`hidream.toml` in the home), `HIDREAM_MODEL` (short for `HIDREAM_MODELS_DEV`) and `HIDREAM_API_KEY` (the first key). An
unknown key or a bad value is an error that names it; whatever its source, `_value` finds it. Variables that Kubernetes
or Docker put there are passed over, and `passed_over` names them, for whoever has a log.

Knows which settings there are, and what each accepts, only from `tables.py`; what they are for, not at all.
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
from hidream.settings.injected import injected
from hidream.settings.nearest import nearest
from hidream.settings.tables import SECRETS, TABLES, Settings
from hidream.types import Variant

_OUTSIDE_TABLES = {"HIDREAM_HOME", "HIDREAM_CONFIG", "HIDREAM_MODEL", "HIDREAM_API_KEY"}


def load(environ: Mapping[str, str], flags: Mapping[str, Mapping[str, object]] | None = None) -> Settings:
    """Settle all settings: `flags` ({table: {key: value}}) over `environ` over the TOML file over the defaults.

    Raises ConfigurationError on an unknown key, a bad value, or a TOML file that cannot be read.
    """
    home = _home(environ)
    chosen: dict[str, dict[str, object]] = {name: {} for name in TABLES}
    for layer in (_from_toml(environ, home), _from_environ(environ), _from_flags(flags or {})):
        for table, values in layer.items():
            chosen[table].update(values)
    tables = {name: TABLES[name](**values) for name, values in chosen.items()}
    return Settings(home=home.resolve(), api_key=_api_key(environ), **tables)


def passed_over(environ: Mapping[str, str]) -> list[str]:
    """Name the variables that begin like settings and are none, because Kubernetes or Docker put them there."""
    return sorted(name for name, text in environ.items() if text and injected(name, text))


def to_environ(settings: Settings) -> dict[str, str]:
    """Undo `load`: the variables that give a child process the same settings.

    But for the API key and the keys' pepper, which a worker has no use for.
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
    """The flag of a setting; of the variants' checkpoints a command takes one."""
    return "--model" if table == "models" and key in list(Variant) else f"--{key.replace('_', '-')}"


def _home(environ: Mapping[str, str]) -> Path:
    """Where all state lies; made by whoever first writes there."""
    named = environ.get("HIDREAM_HOME")
    if not named:
        return Path(platformdirs.user_data_dir("hidream", appauthor=False))
    home = _path(named, "HIDREAM_HOME")
    if home.exists() and not home.is_dir():
        raise ConfigurationError(f"HIDREAM_HOME is {named!r:.100}, which is a file; accepted: a folder, or a new path")
    return home


def settings_file(environ: Mapping[str, str], home: Path) -> Path:
    """Where the TOML file is, or would be."""
    named = environ.get("HIDREAM_CONFIG")
    return _path(named, "HIDREAM_CONFIG") if named else home / "hidream.toml"


def _api_key(environ: Mapping[str, str]) -> str:
    """The first key. What is wrong with it is said without showing it."""
    key = environ.get("HIDREAM_API_KEY", "")
    if key != key.strip() or not key.isprintable():
        raise ConfigurationError(
            "HIDREAM_API_KEY has blanks around it, or what cannot be printed, and no request could carry it; "
            "accepted: printable characters"
        )
    return key


def _from_toml(environ: Mapping[str, str], home: Path) -> dict[str, dict[str, object]]:
    path = settings_file(environ, home)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not environ.get("HIDREAM_CONFIG"):
            return {}
        raise ConfigurationError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not TOML, not UTF-8, a number without end
        raise ConfigurationError(f"the settings file {path} cannot be read: {error}") from error
    found: dict[str, dict[str, object]] = {}
    for table, values in document.items():
        if table in TABLES and not isinstance(values, dict):
            raise ConfigurationError(f"{path}: {table} is {values!r:.60}; accepted: one table [{table}]")
        if table not in TABLES:
            near = nearest(table, _keys() | {name: f"[{name}]" for name in TABLES})
            raise ConfigurationError(f"{path}: unknown table [{table}]{near}; accepted: {', '.join(TABLES)}")
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
    """Say which variable is most like an unknown one, its table left out or not."""
    every = [(table, f.name) for table in TABLES for f in dataclasses.fields(TABLES[table])]
    known = {key: env_name(table, key) for table, key in every}
    known |= {f"{table}_{key}": env_name(table, key) for table, key in every}
    known |= {outside.removeprefix("HIDREAM_").lower(): outside for outside in _OUTSIDE_TABLES}
    return nearest(name.removeprefix("HIDREAM_"), known)


def _keys() -> dict[str, str]:
    """Say of each key where it stands."""
    return {f.name: f"[{table}] {f.name}" for table in TABLES for f in dataclasses.fields(TABLES[table])}


def _from_flags(flags: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    return {
        table: {key: _value(table, key, value, flag_name(table, key)) for key, value in values.items()}
        for table, values in flags.items()
    }


def _value(table: str, key: str, value: object, where: str) -> object:
    """Bring one value to its field's type, and see that the field accepts it; `where` names it in the error."""
    hints = get_type_hints(TABLES[table], include_extras=True)
    if key not in hints:
        near = nearest(key, _keys() | {each: each for each in hints})
        raise ConfigurationError(f"{where}: unknown key{near}; accepted in [{table}]: {', '.join(hints)}")
    wanted, accepted = get_args(hints[key])
    if wanted is Path:
        if isinstance(value, str) and value:
            return _path(value, where)
        raise ConfigurationError(f"{where} is {_shown(value)}; accepted: a path")
    try:
        typed = _typed(wanted, value)
        if accepted.holds(typed):
            return typed
    except (TypeError, ValueError, OverflowError):
        pass
    what = {int: "a whole number, ", float: "a number, "}.get(wanted, "")
    shown = "not shown" if (table, key) in SECRETS else _shown(value)
    raise ConfigurationError(f"{where} is {shown}; accepted: {what}{accepted}")


def _typed(wanted: type, value: object) -> object:
    """Raises TypeError, ValueError or OverflowError; also on surrogates, as which bytes come that are no UTF-8."""
    if wanted is int and not isinstance(value, bool | float):
        return int(value)  # type: ignore[call-overload]
    if wanted is float and not isinstance(value, bool):
        return float(value)  # type: ignore[arg-type]
    if wanted is str and isinstance(value, str):
        value.encode()
        return value
    raise TypeError(f"{type(value)} is no {wanted}")


def _path(text: str, where: str) -> Path:
    """A path in UTF-8 that the system can follow; that nothing is there, its reader says, who knows what should be."""
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
    """A value for an error: not all of a long one, and no password of a URL."""
    return re.sub(r"://[^/]*@", "://***@", repr(value))[:100]
