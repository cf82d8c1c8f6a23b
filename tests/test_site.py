"""The site of the documents builds in strict mode, needs nothing from elsewhere, and has its Markdown beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""The attribute of each element that makes a browser load something."""


class Resources(HTMLParser):
    """What a page loads, and where it links."""

    def __init__(self, page):
        super().__init__()
        self.loads, self.links = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in LOADED and LOADED[tag] in given and given.get("rel") != "canonical":
            self.loads.append(given[LOADED[tag]])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents") / "site"
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "site" / "build.py", folder],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(built):
    pages = [path for path in built.rglob("*.html") if path.name != "404.html"]
    assert len(pages) >= 28
    for path in pages:
        found = Resources(path.read_text())
        assert found.loads
        for target in [*found.loads, *(link for link in found.links if not re.match("https?:|mailto:", link))]:
            assert not re.match(r"(\w+:)?//", target), (path.name, target)
            file = target.partition("#")[0].partition("?")[0]
            assert target.startswith("data:") or not file or (path.parent / file).exists(), (path.name, target)
    for path in built.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", path.read_text()), path.name


def test_each_page_has_its_markdown_and_is_listed_for_language_models(built):
    pages = {path.relative_to(built).with_suffix("") for path in built.rglob("*.html")} - {Path("404")}
    sources = {path.relative_to(built).with_suffix("") for path in built.rglob("*.md")}
    listed = re.findall(r"^- \[.+\]\((.+)\.md\): .+$", (built / "llms.txt").read_text(), re.MULTILINE)
    assert pages == sources == {Path(name) for name in listed}


def test_references_come_from_the_code(built):
    read = {name: (built / "reference" / f"{name}.md").read_text() for name in ("http", "python")}
    assert "## POST /v1/images/generations" in read["http"]
    assert read["http"].count("\nSubmit a task.\n") == 1, "routes that are alike have one section"
    assert "\n## POST /api/{v2,v3}/wavespeed-ai/{hidream-i1-dev,hidream-i1-full,hidream-i1-fast}\n" in read["http"]
    assert (
        "On `/api/{api}/predictions/{prediction_id}`, `/api/{api}/predictions/{prediction_id}/result`" in read["http"]
    )
    assert "from_pretrained" in read["python"]
    assert "from_pretrained" in (built / "reference" / "python.html").read_text()
    assert "hidream keys create" in (built / "COMMANDS.md").read_text()
    found = {each["location"].partition("#")[0] for each in json.loads((built / "search.json").read_text())["items"]}
    assert {"reference/http.html", "reference/python.html", "start/artist.html"} <= found
