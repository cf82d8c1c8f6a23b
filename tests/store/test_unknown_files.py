"""Orphans: files that no row refers to."""

from store_calls import new_key, submit

from hidream.store import retention, uploads
from hidream.store.uploads import Upload


async def test_files_without_a_row_are_unknown(database):
    key = await new_key(database)
    prediction = await submit(database, key)
    upload = Upload("upload.png", key.id, "a.png", "image/png", 3, database.now_ms(), True)
    await uploads.create(database, upload)
    names = [prediction.output_name, f"2-{prediction.output_name}", "upload.png", "orphan.png"]
    found = await retention.unreferenced(database, names, lambda name: name.removeprefix("2-"))
    assert found == ["orphan.png"]
    assert await retention.unreferenced(database, [], str) == []


async def test_as_many_as_a_page_can_be_asked_for(database):
    names = [f"{i:043}.png" for i in range(5000)]
    assert await retention.unreferenced(database, names, lambda name: name) == names
