"""Other users of the machine may read nothing that hidream has written, whatever the umask."""

import os

import pytest

from hidream.settings import private
from hidream.settings.sources import load
from soak.fleet import MODEL, Fleet, until

pytestmark = pytest.mark.integration


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(home):
    return {str(path.relative_to(home.parent)): path.stat().st_mode & 0o777 for path in (home, *home.rglob("*"))}


def test_only_its_user_may_read_what_a_server_and_a_worker_have_made(tmp_path, umask, make_image):
    with Fleet(tmp_path, apis=1, workers=1) as fleet, fleet.client() as http:
        image = http.post("/api/v3/media/upload/binary", files={"file": ("a.png", make_image("PNG"))}).json()["data"]
        body = {"prompt": "a house", "image": image["download_url"], "seed": 2}
        id_ = http.post(f"/api/v3/{MODEL}", json=body).json()["data"]["id"]
        until(lambda: http.get(f"/api/v3/predictions/{id_}").json()["data"]["status"] == "completed")
        found = modes(fleet.home)
    assert {f"home/hidream.db{suffix}" for suffix in ("", "-wal", "-shm")} <= found.keys()
    assert {"home", "home/outputs", "home/uploads", "home/outputs/.parts"} <= found.keys()
    wrong = {name: oct(mode) for name, mode in found.items() if mode != (0o700 if is_folder(name) else 0o600)}
    assert wrong == {}
    assert "others_may_read" not in fleet.logs()


def is_folder(name):
    return name in ("home", "home/outputs", "home/uploads") or name.endswith("/.parts")


def test_a_home_that_others_may_read_stays_so_and_is_named_once_with_the_cure(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    with Fleet(tmp_path, apis=1, workers=0, ready=False) as fleet:
        assert fleet.apis[0].url
        log = fleet.logs()
    assert log.count("others_may_read") == 1
    assert f"others_may_read path={home} cure=chmod -R go= {home}" in log
    assert home.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("text", "mode", "named"),
    [
        ('[store]\nkey_pepper = "sixteen and more chars"\n', 0o644, True),
        ('[store]\nkey_pepper = "sixteen and more chars"\n', 0o600, False),
        ('[store]\ndatabase_url = "postgresql+asyncpg://u:p@h/d"\n', 0o640, True),
        ('[outputs]\nsecret_access_key = "xyz"\n', 0o604, True),
        ("[server]\nport = 1\n", 0o644, False),
    ],
)
def test_a_settings_file_with_secrets_that_others_may_read_is_named(tmp_path, text, mode, named):
    home, config = tmp_path / "home", tmp_path / "hidream.toml"
    private.make_home(home)
    config.write_text(text)
    config.chmod(mode)
    environ = {"HIDREAM_HOME": str(home), "HIDREAM_CONFIG": str(config)}
    assert [path for path, _ in private.exposed(load(environ), environ)] == ([config] if named else [])


def test_a_database_elsewhere_that_others_may_read_is_named(tmp_path):
    home, database = tmp_path / "home", tmp_path / "elsewhere" / "x.db"
    private.make_home(home)
    database.parent.mkdir(mode=0o755)
    database.write_bytes(b"")
    database.chmod(0o644)
    environ = {"HIDREAM_HOME": str(home), "HIDREAM_STORE_DATABASE_URL": f"sqlite+aiosqlite:///{database}"}
    assert list(private.exposed(load(environ), environ)) == [(database, f"chmod go= {database}*")]
    database.parent.chmod(0o700)
    assert list(private.exposed(load(environ), environ)) == []
