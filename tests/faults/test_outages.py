"""A full disk, a database or store that is stopped or hangs: nothing acknowledged is lost, no process dies.

Clients see 503s meanwhile, never a 500, and everything that was acknowledged is there and drawn once it is over.
"""

import contextlib
import os
import subprocess
import threading
import time

import httpx
import pytest

from postgres import postgres
from s3_server import BUCKET, KEY_ID, SECRET, S3Server
from soak.fleet import KEY, MODEL, Fleet, until

__all__ = ["postgres"]

DISK_BYTES = 6 * 2**20
SEED_THAT_IS_DRAWN = 2
PACE_S = 0.1
"""Between two requests: each task that is acknowledged is looked at afterwards, image included."""


class Submitter(threading.Thread):
    """A client that submits again and again, and keeps what was acknowledged and with which status."""

    def __init__(self, fleet):
        super().__init__()
        self.fleet, self.acknowledged, self.statuses, self.over = fleet, [], [], threading.Event()

    def run(self):
        with self.fleet.client() as http:
            while not self.over.is_set():
                body = {"prompt": "through an outage", "seed": SEED_THAT_IS_DRAWN, "output_format": "png"}
                answer = http.post(f"/api/v3/{MODEL}", json=body)
                self.statuses.append(answer.status_code)
                if answer.status_code == 200:
                    self.acknowledged.append(answer.json()["data"]["id"])
                else:
                    assert answer.headers.get("retry-after") or answer.status_code != 503
                time.sleep(PACE_S)


@contextlib.contextmanager
def submitting(fleet):
    submitter = Submitter(fleet)
    submitter.start()
    try:
        until(lambda: len(submitter.acknowledged) > 10)
        yield submitter
    finally:
        submitter.over.set()
        submitter.join()


def hold(fleet, submitter, pids):
    """Hold what there is, once the outage is over, against what was acknowledged."""
    assert set(submitter.statuses) <= {200, 503}, sorted(set(submitter.statuses))
    assert [member.pid for member in fleet.members if member.alive] == pids, fleet.logs()[-3000:]
    with fleet.client() as http:
        for id_ in submitter.acknowledged:
            data = until(lambda id_=id_: ended(http, id_))
            assert data["status"] == "completed", data
            image = http.get(httpx.URL(data["outputs"][0]).path, follow_redirects=True)
            assert image.status_code == 200
        assert http.post("/api/v3/predictions", json={}).json()["data"]["total"] == len(submitter.acknowledged)
    assert "Traceback" not in fleet.logs()
    assert KEY not in fleet.logs()


def ended(http, id_):
    answer = http.get(f"/api/v3/predictions/{id_}", params={"wait_s": 20})
    assert answer.status_code in (200, 503), answer.text
    data = answer.json()["data"]
    return data if data and data["status"] in ("completed", "failed") else None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "hidream-test", folder]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(tmp_path, small_disk):
    lower = {"HIDREAM_STORE_FREE_MIN_MB": "0"}  # or nothing would be taken in long before
    with Fleet(tmp_path, apis=1, workers=1, home=small_disk / "home", **lower) as fleet:
        pids = [member.pid for member in fleet.members]
        with submitting(fleet) as submitter:
            ballast = small_disk / "ballast"
            fill(ballast)
            until(lambda: submitter.statuses[-5:] == [503] * 5)
            with fleet.client() as http:
                assert http.get("/healthz").status_code == 200
                assert http.get(f"/api/v3/predictions/{submitter.acknowledged[0]}").status_code in (200, 503)
            time.sleep(2)
            ballast.unlink()
            until(lambda: submitter.statuses[-5:] == [200] * 5)
        hold(fleet, submitter, pids)


def fill(ballast):
    """Leave no byte; the others write at the same time."""
    with ballast.open("ab", buffering=0) as file:
        until(lambda: not grows(file))


def grows(file):
    try:
        return file.write(b"\0" * 4096) == 4096
    except OSError:
        return False


@pytest.mark.parametrize("away_s", [5, pytest.param(30, marks=pytest.mark.long)])
def test_a_database_that_is_away(tmp_path, postgres, away_s):
    with Fleet(tmp_path, apis=1, workers=1, HIDREAM_STORE_DATABASE_URL=postgres.url()) as fleet:
        pids = [member.pid for member in fleet.members]
        with submitting(fleet) as submitter:
            postgres.stop()
            try:
                until(lambda: submitter.statuses[-1] == 503)
                time.sleep(away_s)
                with fleet.client() as http:
                    assert http.get("/healthz").status_code == 200
                    assert http.get("/readyz").status_code == 503
            finally:
                postgres.start()
            until(lambda: submitter.statuses[-5:] == [200] * 5)
        hold(fleet, submitter, pids)


@pytest.mark.parametrize("how", ["stopped", "hangs"])
@pytest.mark.parametrize("away_s", [4, pytest.param(60, marks=pytest.mark.long)])
def test_an_object_store_that_is_away(tmp_path, how, away_s):
    with S3Server(tmp_path / "s3") as s3:
        place = {
            "URL": f"s3://{BUCKET}/here",
            "ENDPOINT": s3.endpoint,
            "REGION": "us-east-1",
            "ACCESS_KEY_ID": KEY_ID,
            "SECRET_ACCESS_KEY": SECRET,
        }
        environ = {f"HIDREAM_OUTPUTS_{name}": value for name, value in place.items()}
        with Fleet(tmp_path, apis=1, workers=1, **environ) as fleet:
            pids = [member.pid for member in fleet.members]
            with submitting(fleet) as submitter:
                s3.stop() if how == "stopped" else s3.pause()
                try:
                    time.sleep(away_s)
                    assert submitter.statuses[-1] == 200  # tasks need no store until they are drawn
                finally:
                    s3.start() if how == "stopped" else s3.go_on()
            hold(fleet, submitter, pids)
