"""Backup and restore of SQLite with the commands of docs/OPERATIONS.md."""

import re
import subprocess
from pathlib import Path

from soak.fleet import MODEL, Fleet, until

OPERATIONS = Path(__file__).parents[2] / "docs" / "OPERATIONS.md"


def commands(name):
    """The block of commands that begins with a comment of this name."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(f"# {name},")]
    return block


def run(name, home):
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands(name)], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(http, seed):
    return http.post(f"/api/v3/{MODEL}", json={"prompt": "a house in the fog", "seed": seed}).json()["data"]["id"]


def status(http, id_):
    answer = http.get(f"/api/v3/predictions/{id_}")
    return answer.json()["data"]["status"] if answer.status_code == 200 else answer.status_code


def test_the_documented_commands_bring_back_what_was_there(tmp_path):
    with Fleet(tmp_path, apis=1, workers=1) as fleet:
        with fleet.client() as http:
            before = submit(http, seed=2)
            until(lambda: status(http, before) == "completed")
            assert run("backup", fleet.home) == "ok\n"
            assert (fleet.home / "copy.db").stat().st_mode & 0o777 == 0o600
            after = submit(http, seed=3)
            until(lambda: status(http, after) == "completed")
        for member in list(fleet.members):
            fleet.members.remove(member)
            member.stop(9)  # so that a log is left behind
        assert (fleet.home / "hidream.db-wal").stat().st_size > 0
        run("restore", fleet.home)
        assert {path.name for path in (fleet.home / "before").iterdir()} == {
            "hidream.db",
            "hidream.db-wal",
            "hidream.db-shm",
        }
        fleet.start("api")
        fleet.start("worker")
        fleet.wait_until_ready()
        with fleet.client() as http:
            assert (status(http, before), status(http, after)) == ("completed", 404)
            again = submit(http, seed=4)
            until(lambda: status(http, again) == "completed")
        assert "others_may_read" not in fleet.logs()
