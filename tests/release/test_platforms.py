"""What runs on Linux, Windows and macOS, the library and `hidream generate`, calls nothing that only POSIX has."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
ROOTS = (
    "hidream",
    "hidream.client",
    "hidream.configured_stores",
    "hidream.engine.*",
    "hidream.formats.*",
    "hidream.library",
    "hidream.model.*",
    "hidream.outputs.encode",
    "hidream.pipeline",
    "hidream.request",
    "hidream.settings.*",
    "hidream.webhooks.signature",
    "hidream.worker.loading",
)
"""Where the library, the client and the command line begin; those that do not exist yet are passed over."""
POSIX_MODULES = {"fcntl", "grp", "posix", "pwd", "resource", "termios", "tty", "pty", "syslog", "readline"}
POSIX_NAMES = {
    "os": {
        "O_CLOEXEC",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NONBLOCK",
        "WNOHANG",
        "chown",
        "fchmod",
        "fchown",
        "fork",
        "forkpty",
        "getegid",
        "geteuid",
        "getgid",
        "getloadavg",
        "getpgid",
        "getpgrp",
        "getpriority",
        "getsid",
        "getuid",
        "initgroups",
        "killpg",
        "mkfifo",
        "nice",
        "openpty",
        "pidfd_open",
        "posix_fadvise",
        "posix_spawn",
        "pread",
        "preadv",
        "pwrite",
        "register_at_fork",
        "sched_getaffinity",
        "sched_setaffinity",
        "sendfile",
        "setgid",
        "setpriority",
        "setsid",
        "setuid",
        "statvfs",
        "sync",
        "sysconf",
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
        "pthread_sigmask",
        "setitimer",
        "sigwait",
    },
    "socket": {"AF_UNIX", "SCM_RIGHTS", "SO_REUSEPORT"},
}
"""What the documentation of Python marks "Availability: Unix", as far as code of ours could use it."""
ALLOWED: dict[tuple[str, str], str] = {}
"""Uses that are guarded at run time, with the reason."""


def modules(names):
    """The modules that exist of some names; `package.*` means all of a package."""
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
def test_nothing_that_the_library_reaches_needs_posix():
    found = {(module, name) for module in reachable(ROOTS) for name in posix_names(module)}
    assert found == ALLOWED.keys()


def test_the_check_sees_what_it_looks_for():
    assert "os.fork" in posix_names("hidream.images.zygote")
    assert "resource" in posix_names("hidream.images.zygote")
    assert "signal.SIGKILL" in posix_names("hidream.images.decoders")
    assert {"hidream.model.loading", "hidream.images.prepared", "hidream.types"} <= reachable(ROOTS)


SIMULATED = """
import os, signal, socket, sys
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

BLOCKED, NAMES = eval(sys.argv[1])
here = draw()  # libraries are imported as on this platform, which they know
for name in [name for name in sys.modules if name.partition(".")[0] == "hidream" or name in BLOCKED]:
    del sys.modules[name]
sys.meta_path.insert(0, Missing())
for module, names in NAMES.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
sys.platform = "win32"
assert draw() == here
"""


@pytest.mark.integration
def test_an_image_is_the_same_without_what_only_posix_has():
    """Not a test of Windows: it tells that of our own code nothing asks for what is not there."""
    command = [sys.executable, "-c", SIMULATED, repr((POSIX_MODULES, POSIX_NAMES))]
    environ = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, capture_output=True, env=environ, timeout=200, text=True)
    assert done.returncode == 0, done.stderr
