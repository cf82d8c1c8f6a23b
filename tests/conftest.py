"""For all suites: one thread per process, fixed examples, and the distribution of the tests to processes.

Servers, workers and tests share the cores: each process computes with one thread, and what waits does not spin (see
`cli.py`). What a test starts inherits that; a test whose subject is threads sets their number itself.

Python keeps what it has compiled, whatever the environment says: else each process would compile all tests anew.

Property tests have the same examples in every `make test`; `make test-long` runs them with the hypothesis profile
`long`, whose examples are new each time, and the tests marked `long` as well.

`make test` runs two processes (pytest-xdist). A file stays in one of them, and so does a suite whose files share a
server (SHARING); the suites that take longest come first.

`make test-unit` leaves out what is marked `slow` or `integration`: whole suites (SYSTEM) and what uses a server's
fixture (SERVERS), without a mark of their own, and files and tests that have one. Any other test fails, in every run,
when it starts a process or opens a socket (see `guard.py`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from databases import Copies
from guard import Guard

pytest.register_assert_rewrite("soak.fleet", "clients.received_images", "received_images")  # what they assert is shown

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it does not wait for
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a test starts can be interrupted
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.pop("HF_HUB_CACHE", None)
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "no-hub-of-hidream")  # no test sees the user's own models
settings.register_profile("short", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=1000, deadline=None, derandomize=False)  # in CI as well
settings.load_profile("short")

SHARING = ("acceptance", "clients")
"""Suites whose files share a running service."""
LONGEST = ("crash", "attack", "acceptance", "clients", "faults", "soak", "contract", "training", "engine")
"""Suites that come first, so that both processes end at about the same time."""

SYSTEM = ("acceptance", "attack", "benchmarks", "clients", "contract", "crash", "deploy", "faults", "soak", "training")
"""Suites that drive servers or scripts from outside."""
SERVERS = {"open_apis", "postgres", "s3"}
"""Fixtures that are servers."""
GUARD = pytest.StashKey[Guard]()


def pytest_configure(config):
    with contextlib.suppress(ImportError):
        import urllib3.util.connection  # noqa: F401 - whose import binds a socket, to see whether there is IPv6
    config.stash[GUARD] = Guard()


def pytest_ignore_collect(collection_path, config):
    """Whole suites that `make test-unit` leaves out are not imported for it either."""
    left_out = "not integration" in config.option.markexpr and collection_path.name in SYSTEM
    return True if left_out and collection_path.parent == Path(__file__).parent else None


def pytest_collection():
    gc.disable()


def pytest_collection_finish():
    """What has been imported stays: no collection of garbage looks through it, which takes a twentieth of the time."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(items):
    for item in items:
        if suite(item.nodeid) in SYSTEM or SERVERS & set(item.fixturenames):
            item.add_marker("integration")
    order = dict(zip(LONGEST, range(len(LONGEST)), strict=True))
    items.sort(key=lambda item: order.get(suite(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return suite(nodeid) if suite(nodeid) in SHARING else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # they are in order: see `pytest_collection_modifyitems`
    return ByFile(config, log)


def suite(nodeid: str) -> str:
    """The folder under `tests/`; of a file that lies there itself, its name."""
    return nodeid.partition("::")[0].removeprefix("tests/").partition("/")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with guarded(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with guarded(item):
        return (yield)


def guarded(item):
    """Not while fixtures end, which may be those of tests before."""
    return contextlib.nullcontext() if item.get_closest_marker("integration") else item.config.stash[GUARD].watch()


@pytest.fixture(scope="session")
def anyio_backend():
    """Tests run on asyncio, as the product does."""
    return "asyncio"


@pytest.fixture
def first_seed():
    """Where a test's own random seeds begin: 0 in `make test`, even and new each time in `make test-long`."""
    fresh = settings.get_current_profile_name() == "long"
    first = 2 * random.SystemRandom().randrange(10**6) if fresh else 0
    print(f"the first seed is {first}")  # noqa: T201 - shown when the test fails
    return first


@pytest.fixture(scope="session")
def sqlite_copies(tmp_path_factory):
    """Files of SQLite with the tables of today: see `Copies.url`."""
    return Copies(tmp_path_factory.mktemp("database"))
