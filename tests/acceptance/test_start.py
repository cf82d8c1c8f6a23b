"""Starting and stopping: keys, and the errors that an operator reads."""

import re
import time

import httpx
import pytest
from service import HANGS_S, MODEL, PROMPT, Service

from hidream.server.key_cache import TTL_S


@pytest.fixture
def start(tmp_path):
    started = []

    def start(**environ):
        started.append(Service(tmp_path / "home", HIDREAM_WORKER_SERVES="dev", **environ))
        return started[-1]

    yield start
    for service in started:
        if not service.process.stdout.closed:
            service.stop()


def status_with(service, key):
    body = {"prompt": PROMPT, "size": "256*256"}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{service.url}/api/v3/{MODEL}", json=body, headers=headers, timeout=60).status_code


def test_the_operators_own_key_is_the_first_key(start):
    service = start(HIDREAM_API_KEY="any opaque text of the operator's")
    assert status_with(service, "any opaque text of the operator's") == 200
    assert service.stop() == 0
    assert service.said == ""
    assert "any opaque text of the operator's" not in service.log.read_text()


def test_keys_are_made_and_revoked_while_the_server_runs(service):
    made = re.search(r"hd_[A-Za-z0-9_-]{43}", service.command("keys", "create", "--name", "second"))[0]
    assert status_with(service, made) == 200
    (line,) = [line for line in service.command("keys", "list").splitlines() if "second" in line]
    service.command("keys", "revoke", re.search(r"\b[0-9a-f]{32}\b", line)[0])
    time.sleep(TTL_S)
    assert status_with(service, made) == 401
    assert status_with(service, service.key) == 200
    assert made not in service.log.read_text()


def test_a_model_that_cannot_be_loaded_ends_the_server_and_says_why_and_hides_no_key(start, tmp_path):
    service = start(HIDREAM_MODEL=str(tmp_path / "no-such-model"))
    assert service.process.wait(HANGS_S) == 78
    log = service.log.read_text()
    assert "no-such-model" in log
    assert log.splitlines()[-1] == "hidream: the worker cannot start; the log above says why"
    assert "first_key_void" in log
    service.stop()
    void, service.key = service.key, None
    del service.environ["HIDREAM_MODEL"]
    service.start()  # it shows a key again
    assert status_with(service, void) == 401
    assert status_with(service, service.key) == 200
    assert service.stop() == 0
    service.start()  # and from now on none
    assert status_with(service, service.key) == 200
    assert service.stop() == 0
    assert service.said == ""


def test_a_key_that_was_used_outlives_a_start_that_fails(start, tmp_path):
    service = start(HIDREAM_MODEL=str(tmp_path / "no-such-model"))
    assert status_with(service, service.key) == 200
    assert service.process.wait(HANGS_S) == 78
    service.stop()
    del service.environ["HIDREAM_MODEL"]
    service.start()
    assert status_with(service, service.key) == 200
    assert service.stop() == 0
    assert service.said == ""
    assert re.search(r"first_key_known id=(\w{32}) if_lost=hidream keys rotate \1", service.log.read_text())
