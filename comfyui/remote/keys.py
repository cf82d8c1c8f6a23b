"""Which key a server gets. A workflow says only the key's name; the key is in the environment, or in `keys.toml`.

Workflows come from strangers. So a key is only sent to the server that it belongs to, whatever URL a workflow names:

- HIDREAM_API_KEY of the environment belongs to HIDREAM_BASE_URL, or to http://127.0.0.1:8000.
- WAVESPEED_API_KEY of the environment belongs to https://api.wavespeed.ai.
- A key of `keys.toml` in ComfyUI's user folder belongs to the URL that stands beside it:

      [STUDIO_KEY]
      url = "https://images.example.com"
      key = "hd_..."

ComfyUI serves no file of `user/__hidream/` by HTTP. Standard library only, beside hidream's errors.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FILE = Path("__hidream") / "keys.toml"
"""Below ComfyUI's user folder."""
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
NAME_ACCEPTED = "the name of a key, in capitals, such as HIDREAM_API_KEY; never the key itself"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A server's address, and the key for it."""

    url: str
    key: str = field(repr=False)


def check_name(name: str) -> None:
    """Raise InvalidInput if a key's name is none. The message does not show it, because it may be the key itself."""
    from hidream.errors import InvalidInput

    if not _NAME.fullmatch(name):
        raise InvalidInput(f"key is not a name; accepted: {NAME_ACCEPTED}", field="key")


def credentials(url: str, name: str, environ: Mapping[str, str], user_folder: Path) -> Credentials:
    """Find the key of a name, for the server at `url`; "" is the server to which the key belongs.

    Raises InvalidInput for a name that is none, Unauthorized if there is no such key, Forbidden if it belongs to
    another server, and ConfigurationError if `keys.toml` cannot be read. No message shows a key.
    """
    from hidream.errors import Forbidden, Unauthorized

    check_name(name)
    file = user_folder / FILE
    found = _keys(file).get(name) or _of_environment(name, environ)
    if found is None or not found.key:
        raise Unauthorized(
            f"there is no key {name}; set the environment variable HIDREAM_API_KEY or WAVESPEED_API_KEY before ComfyUI "
            f'starts, or write [{name}] with url = "..." and key = "..." into {file}'
        )
    if url and _origin(url) != _origin(found.url):
        raise Forbidden(
            f"the key {name} is for {found.url}, and not for {url!r:.200}; if you trust that server, write a key of "
            f"its own, with its url, into {file}"
        )
    return Credentials(url or found.url, found.key)


def _of_environment(name: str, environ: Mapping[str, str]) -> Credentials | None:
    from hidream.client.connection import BASE_URL, HOSTED

    servers = {
        "HIDREAM_API_KEY": environ.get("HIDREAM_BASE_URL") or BASE_URL,
        "WAVESPEED_API_KEY": f"https://{HOSTED}",
    }
    return Credentials(servers[name], environ.get(name, "")) if name in servers else None


def _keys(file: Path) -> dict[str, Credentials]:
    """Read `keys.toml`; without one there are no keys."""
    from hidream.errors import ConfigurationError

    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # editors of Windows write a mark first
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        # tomllib's message says where in the file, but nothing of what is there.
        raise ConfigurationError(f"{file} cannot be read: {_where(error)}; accepted: a file of TOML") from None
    return {name: _entry(file, name, table) for name, table in tables.items()}


def _where(error: Exception) -> str:
    place = re.search(r"at line \d+, column \d+", str(error))
    return f"it is wrong {place[0]}" if place else getattr(error, "strerror", None) or "it is no text in UTF-8"


def _entry(file: Path, name: str, table: Any) -> Credentials:  # noqa: ANN401 - what TOML says
    from hidream.errors import ConfigurationError

    accepted = 'url = "https://HOST" and key = "..."'
    if not _NAME.fullmatch(name) or not isinstance(table, dict) or table.keys() != {"url", "key"}:
        raise ConfigurationError(f"{file} has an entry that is not understood; accepted: [NAME] with {accepted}")
    if not all(isinstance(value, str) and value for value in table.values()) or _origin(table["url"]) is None:
        raise ConfigurationError(f"[{name}] in {file} is not understood; accepted: {accepted}")
    return Credentials(table["url"], table["key"])


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None if the URL has none."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return None
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
    except ValueError:
        return None
