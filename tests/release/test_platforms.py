"""What runs on Linux, Windows and macOS calls nothing that only POSIX has: library, client, MCP tool, command line.

Of the commands, only `serve`, `api` and `worker` are for POSIX alone.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
ROOTS = (
    "hidream",
    "hidream.cli",
    "hidream.client.*",
    "hidream.commands.*",
    "hidream.configured_stores",
    "hidream.engine.*",
    "hidream.formats.*",
    "hidream.hub.*",
    "hidream.keywords",
    "hidream.library.*",
    "hidream.mcp_server",
    "hidream.model.*",
    "hidream.outputs.encode",
    "hidream.request",
    "hidream.settings.*",
    "hidream.webhooks.received",
    "hidream.webhooks.signature",
    "hidream.worker.loading",
)
"""Where the library, the client, the MCP tool and the command line begin. Commands are imported by their names."""
SERVICES = "hidream.commands.services"
"""The commands that start a server or a worker: what they import is for POSIX."""
POSIX_MODULES = {"crypt", "fcntl", "grp", "nis", "ossaudiodev", "posix", "pty", "pwd", "readline", "resource", "spwd"}
POSIX_MODULES |= {"syslog", "termios", "tty"}
POSIX_NAMES = {
    "os": {
        "O_CLOEXEC",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NONBLOCK",
        "WNOHANG",
        "chown",
        "chroot",
        "ctermid",
        "eventfd",
        "fchmod",
        "fchown",
        "fork",
        "forkpty",
        "getegid",
        "geteuid",
        "getgid",
        "getgroups",
        "getloadavg",
        "getpgid",
        "getpgrp",
        "getpriority",
        "getresuid",
        "getsid",
        "getuid",
        "initgroups",
        "killpg",
        "lchown",
        "lockf",
        "memfd_create",
        "mkfifo",
        "mknod",
        "nice",
        "openpty",
        "pathconf",
        "pidfd_open",
        "pipe2",
        "posix_fadvise",
        "posix_fallocate",
        "posix_spawn",
        "pread",
        "preadv",
        "pwrite",
        "register_at_fork",
        "sched_getaffinity",
        "sched_setaffinity",
        "sendfile",
        "setegid",
        "seteuid",
        "setgid",
        "setgroups",
        "setpgid",
        "setpriority",
        "setsid",
        "setuid",
        "statvfs",
        "sync",
        "sysconf",
        "tcgetpgrp",
        "ttyname",
        "uname",
        "wait3",
        "wait4",
        "waitid",
    },
    "signal": {
        "SIGALRM",
        "SIGCHLD",
        "SIGCONT",
        "SIGHUP",
        "SIGKILL",
        "SIGPIPE",
        "SIGQUIT",
        "SIGSTOP",
        "SIGUSR1",
        "SIGUSR2",
        "SIGWINCH",
        "alarm",
        "pause",
        "pthread_kill",
        "pthread_sigmask",
        "setitimer",
        "siginterrupt",
        "sigwait",
    },
    "socket": {"AF_UNIX", "SCM_RIGHTS", "SO_REUSEPORT"},
    "time": {"clock_gettime", "pthread_getcpuclockid", "tzset"},
}
"""What the documentation of Python marks "Availability: Unix", as far as code of ours could use it."""
ALLOWED: dict[tuple[str, str], str] = {
    ("hidream.commands.doctor", "os.sched_getaffinity"): "else os.cpu_count",
    ("hidream.commands.in_store", "os.getuid"): "else no number, for a user without a name",
}
"""Uses that are guarded at run time, with what happens elsewhere; the simulated platform runs these commands."""


def modules(names):
    """The modules among some names, which may be those of functions too; `package.*` means all of a package."""
    found = set()
    for name in names:
        path = SOURCE / name.removesuffix(".*").replace(".", "/")
        if name.endswith(".*"):
            found |= {module_of(each) for each in path.rglob("*.py")}
        elif path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            found.add(name)
    return found


def module_of(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def tree_of(module):
    path = SOURCE / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(module):
    """The modules that a module imports, at its top and in its functions, but not for types only."""
    found = set()
    pending = [tree_of(module)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        pending += ast.iter_child_nodes(node)
    return found


def reachable(roots):
    """All modules of ours that are imported from these, directly or not."""
    found, pending = set(), modules(roots)
    while pending:
        module = pending.pop()
        found.add(module)
        if module == SERVICES:
            continue
        ours = {name for name in imported(module) if name.startswith("hidream")}
        pending |= modules(ours) - found
    return found


def posix_names(module):
    """What a module uses that only POSIX has."""
    found = imported(module) & POSIX_MODULES
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"{node.value.id}.{node.attr}"} if node.attr in POSIX_NAMES.get(node.value.id, ()) else set()
        elif isinstance(node, ast.ImportFrom):
            names = POSIX_NAMES.get(node.module, set()) & {alias.name for alias in node.names}
            found |= {f"{node.module}.{name}" for name in names}
    return found


@pytest.mark.slow
def test_nothing_that_runs_everywhere_needs_posix():
    assert modules({root.removesuffix(".*") for root in ROOTS}) == {root.removesuffix(".*") for root in ROOTS}
    found = {(module, name) for module in reachable(ROOTS) for name in posix_names(module)}
    assert found == ALLOWED.keys()


def test_the_check_sees_what_it_looks_for():
    assert "os.fork" in posix_names("hidream.images.zygote")
    assert "resource" in posix_names("hidream.images.zygote")
    assert "signal.SIGKILL" in posix_names("hidream.images.decoders")
    found = reachable(ROOTS)
    assert {"hidream.model.loading", "hidream.images.prepared", "hidream.types", "hidream.store.keys"} <= found
    assert {"hidream.commands.keys", "hidream.client.runners", "hidream.webhooks.received"} <= found
    assert not {"hidream.server.serve", "hidream.worker.main", "hidream.images.zygote"} & found


SIMULATED = r"""
import os, shutil, signal, socket, sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def draw():
    import numpy as np
    from hidream.model.loading import load
    from hidream.model.pipeline import generate
    from hidream.outputs.encode import encode
    from hidream.request import ImageRequest
    from hidream.types import ImageFormat, Size, Variant

    start = encode(np.zeros((64, 64, 3), np.uint8), ImageFormat.PNG, seed=1, version="")
    request = ImageRequest("a fox", Size(256, 256), seed=7, steps=2, image=start)
    pixels = generate(load(Variant.DEV, device="cpu"), request).pixels
    return encode(pixels, ImageFormat.PNG, seed=7, version="")

def commands():
    # what commands print, without what each run has of its own
    import contextlib, io, json, os, re
    from hidream import cli

    def run(*typed):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = cli.main([*typed])
        return status, re.sub(r"[0-9a-f]{32}|hd_[\w-]+|[0-9.]+ s\b|[0-9.]+ GB", "", said.getvalue())

    home = os.environ["HIDREAM_HOME"] = os.path.join(os.environ["PLACE"], str(len(os.listdir(os.environ["PLACE"]))))
    os.makedirs(home)
    os.chdir(home)
    yield run("keys", "create", "--name", "a")
    yield run("keys", "revoke", "nobody")
    yield run("audit")[0]
    yield run("generate", "a fox", "--seeds", "7,8", "--size", "256x256", "--steps", "1", "--out", "out")
    yield run("inspect", "out/0001-a-fox.png")
    yield run("models", "list")
    yield run("completion", "bash")[0]  # click asks bash for its version
    yield run("store", "copy", "hidream.db", "copy.db")
    yield run("generate", "a fox", "--server", "http://127.0.0.1:9")
    yield run("doctor")[0]

BLOCKED, NAMES = eval(sys.argv[1])
here, there = draw(), [*commands()]  # libraries are imported as on this platform, which they know
assert [each if isinstance(each, int) else each[0] for each in there] == [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], there
for name in [name for name in sys.modules if name.partition(".")[0] == "hidream" or name in BLOCKED]:
    del sys.modules[name]
sys.meta_path.insert(0, Missing())
disk, pair, unix = shutil.disk_usage("."), socket.socketpair, socket.AF_UNIX
shutil.disk_usage = lambda path: disk  # the standard library has its own ways for these on Windows
socket.socketpair = lambda: pair(unix)
import filelock
filelock.FileLock = filelock.SoftFileLock  # as that library does where there is no fcntl
for module, names in NAMES.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
sys.platform = "win32"
assert draw() == here
simulated = [*commands()]
assert simulated == there, (simulated, there)
"""


@pytest.mark.integration
def test_images_and_commands_are_the_same_without_what_only_posix_has(tmp_path):
    """Not a test of Windows: it tells that of our own code nothing asks for what is not there."""
    command = [sys.executable, "-c", SIMULATED, repr((POSIX_MODULES, POSIX_NAMES))]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HIDREAM")}
    environ |= {"PYTHONPATH": str(SOURCE), "PLACE": str(tmp_path), "HF_HUB_OFFLINE": "1", "HIDREAM_API_KEY": "hd_key"}
    environ["LOGNAME"] = environ["USERNAME"] = "somebody"  # Windows sets USERNAME
    done = subprocess.run(command, capture_output=True, env=environ, timeout=200, text=True)
    assert done.returncode == 0, done.stderr
