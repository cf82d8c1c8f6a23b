"""A worker that is stopped within a write transaction, and database files that are deleted while in use."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from halt import state
from soak.fleet import KEY, MODEL, Fleet, until

PLANTED = Path(__file__).parent / "planted_stop"
PROMPT = "a lighthouse that no log mentions"
BUSY_S, CHECKED_S = 5, 1
SLACK_S = 3
"""For a machine that has other things to do."""


def environ(flag):
    tests = Path(__file__).parents[1]
    return {
        "STOP_ONCE_THERE_IS": str(flag),
        "PYTHONPATH": os.pathsep.join(map(str, (PLANTED, tests, tests.parent / "src"))),
    }


def timed(http, method, path, **options):
    began = time.monotonic()
    answer = http.request(method, path, **options)
    return answer, time.monotonic() - began


def submit(http):
    return timed(http, "POST", f"/api/v3/{MODEL}", json={"prompt": PROMPT, "seed": 2, "size": "256*256"})


def stopped(fleet):
    """The worker that stands still, once one does."""
    return until(lambda: next((each for each in fleet.workers if state(Path(f"/proc/{each.pid}")) == "T"), None))


def test_a_worker_that_stands_still_with_the_lock_keeps_others_from_writing_only(tmp_path):
    flag = tmp_path / "flag"
    with (
        Fleet(tmp_path, apis=1, workers=2, HIDREAM_WORKER_LEASE_S="6", **environ(flag)) as fleet,
        fleet.client() as http,
    ):
        before, _ = submit(http)
        flag.touch()
        worker = stopped(fleet)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(submit, http) for _ in range(8)]
            until(lambda: http.get("/readyz").status_code == 503, CHECKED_S + SLACK_S)
            for path in ("/readyz", "/healthz", f"/api/v3/predictions/{before.json()['data']['id']}", "/readyz"):
                answer, took_s = timed(http, "GET", path)
                assert answer.status_code == (503 if path == "/readyz" else 200), answer.text
                assert took_s < 2 + SLACK_S
            for answer, took_s in (each.result() for each in asked):
                assert (answer.status_code, "retry-after" in answer.headers) == (503, True), answer.text
                assert took_s < BUSY_S + SLACK_S
        assert "locked" in http.get("/readyz").json()["message"]
        fleet.members.remove(worker)
        worker.stop(signal.SIGKILL)
        id_ = until(lambda: (answer := submit(http)[0]).status_code == 200 and answer.json()["data"]["id"])
        until(lambda: http.get("/readyz").status_code == 200)
        for each in (id_, before.json()["data"]["id"]):
            until(lambda each=each: http.get(f"/api/v3/predictions/{each}").json()["data"]["status"] == "completed")


@pytest.mark.timeout(300)
def test_the_supervisor_kills_a_worker_that_stands_still_with_the_lock(tmp_path):
    flag = tmp_path / "flag"
    with (
        Fleet(tmp_path, apis=0, workers=0, serves=1, WITHOUT_A_MODEL="yes", **environ(flag)) as fleet,
        fleet.client() as http,
    ):
        flag.touch()
        began = time.monotonic()
        until(lambda: "worker_silent" in fleet.logs(), 60)
        until(lambda: submit(http)[0].status_code == 200)
        assert time.monotonic() - began < 30
        until(lambda: http.get("/readyz").status_code == 200, 120)
        assert fleet.logs().count("worker_silent") == 1
        until(lambda: http.post("/api/v3/predictions", json={}).json()["data"]["items"][0]["status"] == "completed")


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("replaced", "hidream.db"),
        ("deleted", "hidream.db-wal"),
        pytest.param("deleted", "hidream.db", marks=pytest.mark.long),
        pytest.param("replaced", "hidream.db-wal", marks=pytest.mark.long),
    ],
)
def test_a_database_file_that_is_taken_away_ends_all_who_use_it(tmp_path, name, how):
    with Fleet(tmp_path, apis=1, workers=1) as fleet, fleet.client() as http:
        path = fleet.home / name
        path.rename(tmp_path / "away")
        if how == "replaced":
            path.write_bytes((tmp_path / "away").read_bytes())
        answers = []
        with pytest.raises(Exception, match=r"refused|reset|disconnected|closed|peer"):
            while True:
                answers.append(submit(http)[0].status_code)
        assert 200 not in answers
        assert [member.process.wait(30) for member in fleet.members] == [74, 74]
        assert fleet.logs().count("database_gone") == 2
        assert (fleet.home / "hidream.db").exists() == ((name, how) != ("hidream.db", "deleted"))
        assert KEY not in fleet.logs()


@pytest.mark.long
def test_the_supervisor_starts_no_worker_on_a_database_that_is_gone(tmp_path):
    with Fleet(tmp_path, apis=0, workers=0, serves=1) as fleet:
        (serve,) = fleet.members
        (fleet.home / "hidream.db").unlink()
        assert serve.process.wait(60) == 74
        assert not (fleet.home / "hidream.db").exists()
        assert fleet.logs().count("worker_started") == 1
