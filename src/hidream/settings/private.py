"""Who else on this machine may read what lies here: prompts, images, secrets of webhooks.

What hidream makes, only its user may read, whatever the umask. What was there already stays as its operator has made
it: he is told, with the command that changes it.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from hidream.settings import sources
from hidream.settings.tables import SECRETS, Settings

OTHERS = 0o077
"""What group and others may do."""
_SQLITE = "sqlite+aiosqlite:///"


def make_home(home: Path) -> None:
    """Make the folder in which all state lies, if there is none."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)


def exposed(settings: Settings, environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Give what others may read and should not, and the command that ends it."""
    home = settings.home
    if _open(home):
        yield home, f"chmod -R go= {home}"
    if settings.database_url.startswith(_SQLITE):
        database = Path(settings.database_url.removeprefix(_SQLITE))
        if database.parent != home and _open(database.parent) and _open(database):
            yield database, f"chmod go= {database}*"
    config = sources.settings_file(environ, home)
    if _open(config) and (config.parent != home or _open(home)) and _has_secrets(config):
        yield config, f"chmod go= {config}"


def _open(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(path.stat().st_mode & OTHERS)
    return False


def _has_secrets(config: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        document = tomllib.loads(config.read_text(encoding="utf-8"))
        url = document.get("store", {}).get("database_url", "")
        return "@" in url or any(document.get(table, {}).get(key) for table, key in SECRETS)
    return False
