"""A database file with a damaged page: clients get an error about it, and no prompt is in a log."""

import sqlite3
from contextlib import closing

import pytest

from soak.fleet import KEY, MODEL, Fleet, until

PROMPT = "a lighthouse in a storm that no log mentions"
INDEXES = (
    "predictions_waiting",
    *(
        pytest.param(name, marks=pytest.mark.long)
        for name in ("predictions_of_key", "predictions_done", "sqlite_autoindex_predictions_1")
    ),
)


def damage(path, index):
    """Write over the first page of an index."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [index]).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


@pytest.mark.parametrize("index", INDEXES)
def test_a_damaged_page_is_said_and_no_prompt_with_it(tmp_path, index):
    with Fleet(tmp_path, apis=1, workers=1) as fleet:
        with fleet.client() as http:
            made = [http.post(f"/api/v3/{MODEL}", json={"prompt": f"{PROMPT} {i}", "seed": 2}) for i in range(20)]
            ids = [answer.json()["data"]["id"] for answer in made]
            for id_ in ids:
                until(lambda id_=id_: http.get(f"/api/v3/predictions/{id_}").json()["data"]["status"] == "completed")
        for member in list(fleet.members):
            fleet.members.remove(member)
            member.stop()
        damage(fleet.home / "hidream.db", index)
        fleet.start("api")
        fleet.start("worker")
        with fleet.client() as http:
            asked = [http.post(f"/api/v3/{MODEL}", json={"prompt": f"{PROMPT} {i}"}) for i in range(3)]
            asked += [http.get(f"/api/v3/predictions/{id_}") for id_ in ids[:3]]
            asked += [http.post("/api/v3/predictions", json={}), http.delete(f"/api/v3/predictions/{ids[0]}")]
            assert {answer.status_code for answer in asked} <= {200, 404, 503}
            assert any("damaged" in answer.text for answer in asked if answer.status_code == 503)
            for answer in asked:
                assert answer.status_code == 200 or PROMPT not in answer.text
            ready = http.get("/readyz")
            assert (ready.status_code, "database is damaged" in ready.json()["message"]) == (503, True)
            assert http.get("/healthz").status_code == 200
        logs = fleet.logs()
        assert "database_damaged error=database disk image is malformed (SQLITE_CORRUPT" in logs
        assert PROMPT not in logs
        assert KEY not in logs
        assert "Traceback" not in logs
