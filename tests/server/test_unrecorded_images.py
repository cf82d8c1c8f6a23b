"""An image whose row could not be written leaves no file, because nothing would refer to it."""

import sqlite3
from contextlib import closing

from hidream.store import sqlite


async def test_a_database_that_is_locked_leaves_no_file_behind(make_image, tmp_path, monkeypatch, open_api):
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 1", *sqlite._PRAGMAS[1:]))

    async with open_api() as api:

        async def upload():
            files = {"file": ("a.png", make_image())}
            return await api.client.post("/api/v3/media/upload/binary", files=files, headers=api.bearer)

        assert (await upload()).status_code == 200
        kept = sorted(tmp_path.glob("uploads/*.png"))
        with closing(sqlite3.connect(api.service.database._backend.writer.url.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert (await upload()).status_code == 503
        assert len(kept) == 1
        assert sorted(tmp_path.glob("uploads/*.png")) == kept
