"""The functions through which a process changes anything; each call is a place where the process can be killed.

A site is found by being visited: `watch` wraps the two ways to talk to the database, `Watched` a place for files, and
`watch` also the one call that sends a webhook. Its name is who calls, and whether that is before or after the commit.
Each site is struck once: who visits it first makes a file of its name, so that lanes that run side by side share them.
"""

import ast
import os
import re
import sys
import zlib
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, unquote

import hidream.store
from hidream.server.background import webhook_loop
from hidream.store.database import Database

DEATH = 9
STORE = "hidream.store"


class Sites:
    """What was visited and struck, in two folders.

    `alike` is from which visit on those of one name are one site. Of all names those are struck that `only` matches,
    and of these one in `share`. `last` is the file in which a death says where it was.
    """

    def __init__(self, folder, alike=1, only="", share=1, last=None):
        self.struck, self.callers = folder / "struck", folder / "callers"
        for each in (self.struck, self.callers):
            each.mkdir(exist_ok=True)
        self._alike, self._only, self._share = alike, re.compile(only), share
        self._visits, self._known = Counter(), set()
        self._last = last
        self.armed = False

    def visit(self, name):
        """Die here, if this process is to, and none has yet."""
        if not (self.armed and self._only.search(name) and zlib.crc32(name.encode()) % self._share == 0):
            return
        self._visits[name] += 1
        site = f"{name} #{min(self._visits[name], self._alike)}"
        if site not in self._known:
            self._known.add(site)
            if _made(self.struck / quote(site, safe=" #:")):
                self._last.write_text(site)
                os._exit(DEATH)

    def called(self, caller):
        """Remember who has called the database."""
        if self.armed and caller not in self._known:
            self._known.add(caller)
            _made(self.callers / caller)

    def listed(self):
        return [sorted(unquote(path.name) for path in each.iterdir()) for each in (self.struck, self.callers)]


def _made(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def watch(sites):
    """Have all databases and webhooks of this process visit sites."""
    real_write, real_read, real_deliver = Database.write, Database.read, webhook_loop.sending.deliver

    def write(self, **how):
        return writing(self, _caller(sites, sys._getframe(1)), how)

    def read(self):
        return reading(self, _caller(sites, sys._getframe(1)))

    @asynccontextmanager
    async def writing(self, name, how):
        sites.visit(f"{name}: before it begins")
        async with real_write(self, **how) as connection:
            yield connection
            sites.visit(f"{name}: before its commit")
        sites.visit(f"{name}: after its commit")

    @asynccontextmanager
    async def reading(self, name):
        sites.visit(f"{name}: before it reads")
        async with real_read(self) as connection:
            yield connection
        sites.visit(f"{name}: after it has read")

    async def deliver(*args):
        sites.visit("webhook: before it is sent")
        attempt = await real_deliver(*args)
        sites.visit("webhook: after it was sent")
        return attempt

    Database.write, Database.read, webhook_loop.sending.deliver = write, read, deliver


def _caller(sites, frame):
    """Name who asked the store for something, and the function of it that calls the database."""
    inner = outer = _name(frame)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(STORE):
        outer, frame = _name(frame), frame.f_back
    sites.called(inner)
    return outer if outer == inner else f"{outer} by {inner}"


def _name(frame):
    return f"{frame.f_globals['__name__'].removeprefix(STORE + '.')}.{frame.f_code.co_qualname}"


def census():
    """Read from the store's own text which of its functions call the database."""
    found = set()
    for path in Path(hidream.store.__file__).parent.glob("*.py"):
        if path.name not in ("database.py", "sqlite.py", "postgresql.py"):
            found |= {f"{path.stem}.{name}" for name in _calling(ast.parse(path.read_text()), ())}
    return found


def _calling(node, above):
    for child in ast.iter_child_nodes(node):
        within = (*above, child.name) if hasattr(child, "name") and hasattr(child, "body") else above
        yield from _calling(child, within)
        if isinstance(child, ast.Call) and re.search(r"database\.(write|read)$", ast.unparse(child.func)):
            yield ".".join(above)


class Watched:
    """A place for files each of whose calls is a site before and after it is carried out."""

    def __init__(self, place, sites):
        self._place, self._sites = place, sites

    def __getattr__(self, name):
        real = getattr(self._place, name)
        if name not in ("write", "adopt", "read", "metadata", "delete"):
            return real

        async def call(*args):
            self._sites.visit(f"{self._place.namespace}.{name}: before")
            try:
                return await real(*args)
            finally:
                self._sites.visit(f"{self._place.namespace}.{name}: after")

        return call

    async def names(self, older_than):
        self._sites.visit(f"{self._place.namespace}.names: before")
        async for name in self._place.names(older_than):
            yield name
        self._sites.visit(f"{self._place.namespace}.names: after")
