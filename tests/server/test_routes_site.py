"""The documents as a site, from a folder that stands for the built one."""

import pytest

from hidream.server.routes import site


@pytest.fixture
def built(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    (folder / "start").mkdir(parents=True)
    (folder / "index.html").write_text("<title>start</title>")
    (folder / "API.md").write_text("# API")
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.setattr(site, "FOLDER", folder)
    return folder


async def test_pages_and_their_sources(api, built):
    first = await api.client.get("/docs")
    assert (first.status_code, first.headers["location"]) == (307, "docs/")
    page = await api.client.get("/docs/")
    assert (page.status_code, page.text) == (200, "<title>start</title>")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    again = await api.client.get("/docs/index.html", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    source = await api.client.get("/docs/API.md")
    assert (source.status_code, source.text) == (200, "# API")
    head = await api.client.head("/docs/API.md")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "5", b"")
    assert (await api.client.post("/docs/")).status_code == 405


@pytest.mark.parametrize(
    "path",
    ["nothing.html", "start", "..%2fsecret.txt", "start%2f..%2f..%2fsecret.txt", "%2fetc%2fpasswd", "a%00b", "a" * 300],
)
async def test_nothing_outside_the_site(api, built, path):
    answer = await api.client.get(f"/docs/{path}")
    assert answer.status_code == 404
    assert "the start page is /docs/" in answer.json()["message"]


async def test_without_a_built_site_it_says_where_the_documents_are(api, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "FOLDER", tmp_path)
    answer = await api.client.get("/docs/")
    assert answer.status_code == 404
    assert "docs/ of the repository; `make docs` builds them" in answer.json()["message"]
