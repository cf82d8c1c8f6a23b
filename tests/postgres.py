"""A real PostgreSQL server for the tests, on a free port; it ends with them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from databases import with_tables
from halt import halt
from hidream.store.schema import METADATA


def binaries():
    """The folder of initdb and pg_ctl, which Debian keeps out of the path; `make test` installs it."""
    found = shutil.which("pg_ctl") or max(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), default=None)
    if found is None:
        pytest.fail("there is no PostgreSQL server; `make test` installs one, or: apt-get install postgresql")
    return Path(found).resolve().parent


EMPTY = f"""
    SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    TRUNCATE {", ".join(METADATA.tables)} RESTART IDENTITY;
    DELETE FROM pg_statistic WHERE starelid >= 16384;
    UPDATE alembic_version SET version_num = '{{version}}'
"""
"""What a test leaves is removed: sessions, rows, what ANALYZE has found in our tables, and another version."""


class Postgres:
    """A server in a folder of its own.

    `url()` is a new database of it, empty, and `lend()` lends one with our tables and no rows.
    """

    def __init__(self, folder):
        self.folder, self.made, self.template, self.version, self.unused = Path(folder), 0, None, None, []
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
        if self.user:
            shutil.chown(self.folder, "postgres")
        self.run("initdb", "-D", self.folder / "data", "-U", "hidream", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start_somewhere()

    def run(self, name, *arguments):
        call([*self.user, binaries() / name, *arguments])

    def start_somewhere(self, tries=5):
        """Start on a free port, which somebody else may take before the server does."""
        for left in reversed(range(tries)):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
            try:
                self.start()
            except subprocess.CalledProcessError:
                if not left:
                    raise
            else:
                return

    def start(self):
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c max_connections=200 -c fsync=off"
        log = self.folder / "log"
        self.run("pg_ctl", "-D", self.folder / "data", "-l", log, "-o", options, "-w", "start")

    def stop(self, mode="fast"):
        self.run("pg_ctl", "-D", self.folder / "data", "-m", mode, "-w", "stop")

    @contextlib.contextmanager
    def paused(self):
        """Stop every process of the server where it stands, as if the network had swallowed it."""
        first = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        its = [first]
        try:
            halt(first)  # from now on it starts no more, and the pid of one that ends remains
            its += map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())
            for pid in its[1:]:
                halt(pid)
            yield
        finally:
            for pid in reversed(its):
                os.kill(pid, signal.SIGCONT)

    def url(self, template="template1"):
        self.made += 1
        self.sql(f"CREATE DATABASE test{self.made} TEMPLATE {template}")
        return f"postgresql+asyncpg://hidream@127.0.0.1:{self.port}/test{self.made}"

    @contextlib.contextmanager
    def lend(self):
        """Lend a database with our tables and no rows; not within an event loop.

        Making the tables takes longest, so it is done once. Copying them takes ten times as long as emptying a copy.
        """
        if self.template is None:
            self.template = with_tables(self.url()).rpartition("/")[2]
            self.version = self.sql("SELECT version_num FROM alembic_version", self.template).strip()
        url = self.unused.pop() if self.unused else self.url(self.template)
        yield url
        self.sql(EMPTY.format(version=self.version), url.rpartition("/")[2])
        self.unused.append(url)

    def drop(self, url):
        """Remove a database: each has 7 MB before it has anything."""
        self.sql(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def sql(self, statement, database="postgres"):
        """Run statements in one transaction; return the values of the last one's rows."""
        psql = [binaries() / "psql", "-h", self.folder, "-p", str(self.port)]
        return call([*psql, "-U", "hidream", "-A", "-t", database, "-c", statement])  # as another user, a process more


def call(command):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", timeout=60).stdout


@pytest.fixture(scope="session")
def postgres():
    folder = tempfile.mkdtemp(prefix="hidream-postgres-")
    server = None
    try:
        server = Postgres(folder)
        yield server
    finally:
        if server is not None:
            with contextlib.suppress(subprocess.CalledProcessError):  # a test has stopped it
                server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
