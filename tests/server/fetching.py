"""Fetches into memory, for tests."""

import tempfile
from pathlib import Path

from hidream.outputs.folder import Folder
from hidream.outputs.object_store import Namespace
from hidream.server.fetch import fetch


async def fetched(field, url, rules):
    """Fetch a file; the bytes that it has."""
    with tempfile.TemporaryDirectory() as folder:
        async with Folder(Path(folder), Namespace.UPLOADS).part() as part:
            await fetch(field, url, rules, part)
            await part.flush()
            return part.path.read_bytes()
