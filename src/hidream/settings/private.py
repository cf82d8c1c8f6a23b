"""File permissions: other users of this machine should not read prompts, images and webhook secrets.

Only the user of hidream can read what it creates, whatever the umask. Permissions of existing files are not changed:
the operator gets a warning with the command that changes them.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from hidream.settings import sources
from hidream.settings.tables import SECRETS, Settings

OTHERS = 0o077
"""The permission bits of group and others."""
_SQLITE = "sqlite+aiosqlite:///"


def make_home(home: Path) -> None:
    """Create the home folder, which holds all state, if it does not exist."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)


def exposed(settings: Settings, environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Yield each path that other users can read but should not, with the command that fixes it."""
    home = settings.home
    if _open(home):
        yield home, f"chmod -R go= {home}"
    if settings.database_url.startswith(_SQLITE):
        database = Path(settings.database_url.removeprefix(_SQLITE))
        if database.parent != home and _open(database.parent) and _open(database):
            yield database, f"chmod go= {database}*"
    settings_file = sources.settings_file(environ, home)
    if _open(settings_file) and (settings_file.parent != home or _open(home)) and _has_secrets(settings_file):
        yield settings_file, f"chmod go= {settings_file}"


def _open(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(path.stat().st_mode & OTHERS)
    return False


def _has_secrets(settings_file: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        document = tomllib.loads(settings_file.read_text(encoding="utf-8"))
        url = document.get("store", {}).get("database_url", "")
        return "@" in url or any(document.get(table, {}).get(key) for table, key in SECRETS)
    return False
