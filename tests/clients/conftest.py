"""The servers for the clients: a service with its worker, and two API processes with other settings.

- `service`: `hidream serve` with the embedded model, from the acceptance tests.
- `hasty`: another API process on the same home, whose sync mode waits for nothing: everything there takes too long.
- `idle`: an API process without a worker, on a home of its own: what is submitted there waits for ever.
"""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

sys.path.append(str(Path(__file__).parents[1] / "acceptance"))
from driven import Driven
from service import Service, until


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("clients") / "home", HIDREAM_WORKER_SERVES="dev")
    service.wait_until_ready()
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="session")
def limited(service):
    """A key of the service that may draw nothing more today: a task that was cancelled has used up its pixels."""
    key = made_key(service, "--pixels-per-day", str(1024 * 1024))
    with httpx.Client(base_url=f"{service.url}/api/v3", headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        task = http.post("/wavespeed-ai/hidream-i1-dev", json={"prompt": "all of it"}).json()["data"]
        http.delete(f"/predictions/{task['id']}")
    return key


@pytest.fixture(scope="session")
def hasty(service):
    yield from api(service.environ | {"HIDREAM_SERVER_SYNC_TIMEOUT_S": "0"}, service.key)


@pytest.fixture(scope="session")
def idle(service, tmp_path_factory):
    home, key = tmp_path_factory.mktemp("idle") / "home", "a key of the operator's own"
    yield from api(service.environ | {"HIDREAM_HOME": str(home), "HIDREAM_API_KEY": key}, key)


def api(environ, key):
    """Run `hidream api` on a free port."""
    command = [sys.executable, "-m", "hidream.cli", "api", "--port", "0"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        url = re.fullmatch(r"hidream is listening on (http://\S+)\n", process.stdout.readline())[1]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
            until(lambda: http.get("/healthz").status_code == 200)
            yield SimpleNamespace(url=url, key=key, http=http)
        process.terminate()
        assert process.wait(60) == 0  # it may take 20 s itself


def made_key(service, *limits):
    made = service.command("keys", "create", "--name", "limited", *limits)
    return re.search(r"hd_[A-Za-z0-9_-]{43}", made)[0]


@pytest.fixture(scope="session")
def drive(tmp_path_factory):
    """The running client of a name; each is started once."""
    started = {}

    def drive(name):
        if name not in started:
            started[name] = Driven(name, tmp_path_factory.mktemp(name))
        return started[name]

    yield drive
    assert {name: client.end() for name, client in started.items()} == dict.fromkeys(started, 0)


@pytest.fixture
def photo(tmp_path):
    """An image of the user's, to start from."""
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.radial_gradient("L").convert("RGB").save(path)
    return path
