"""Databases with today's tables, created once and copied: migrations take longer than most tests."""

import asyncio
import shutil

from hidream.store.database import Database


def with_tables(url):
    """Make the tables of an empty database; its URL."""

    async def opened():
        async with Database.open(url):
            pass

    asyncio.run(opened())
    return url


class Copies:
    """Copies of one file of SQLite, which has the tables and nothing in them."""

    def __init__(self, folder):
        self.original = folder / "hidream.db"
        with_tables(url_in(folder))

    def url(self, folder):
        """The URL of a copy in `folder`, or of the one that is there."""
        if not (folder / self.original.name).exists():
            shutil.copy(self.original, folder)  # its rights too: it is its owner's alone
        return url_in(folder)


def url_in(folder):
    return f"sqlite+aiosqlite:///{folder}/hidream.db"
