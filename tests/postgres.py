"""A PostgreSQL server of the tests' own: real, on a free port, gone when they are."""

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def binaries():
    """The folder of initdb and pg_ctl, which Debian keeps out of the path; `make test` installs it."""
    found = shutil.which("pg_ctl") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"))[::-1]), None)
    if found is None:
        pytest.fail("there is no PostgreSQL server; `make test` installs one, or: apt-get install postgresql")
    return Path(found).resolve().parent


class Postgres:
    """A server in a folder of its own; `url(name)` is a new, empty database of it."""

    def __init__(self, folder):
        self.folder, self.made = Path(folder), 0
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        if self.user:
            shutil.chown(self.folder, "postgres")
        self.run("initdb", "-D", self.folder / "data", "-U", "hidream", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def run(self, name, *arguments):
        command = [*self.user, binaries() / name, *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=60)

    def start(self):
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c max_connections=200 -c fsync=off"
        log = self.folder / "log"
        self.run("pg_ctl", "-D", self.folder / "data", "-l", log, "-o", options, "-w", "start")

    def stop(self, mode="fast"):
        self.run("pg_ctl", "-D", self.folder / "data", "-m", mode, "-w", "stop")

    def url(self):
        self.made += 1
        name = f"test{self.made}"
        self.run("psql", "-h", self.folder, "-p", str(self.port), "-U", "hidream", "postgres", "-c", f"CREATE DATABASE {name}")
        return f"postgresql+asyncpg://hidream@127.0.0.1:{self.port}/{name}"


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
