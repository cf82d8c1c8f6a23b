"""The docs name every setting, route, flag and status that there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from hidream import cli, settings
from hidream.errors import HiDreamError
from hidream.server.app import create_app

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.mark.parametrize("table", settings.TABLES)
def test_every_setting_is_documented_with_its_default(table):
    section = read("docs/SETTINGS.md").split(f"| `[{table}]` |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE))
    fields = {f.name: f.default for f in dataclasses.fields(settings.TABLES[table])}
    assert rows.keys() == fields.keys()
    for name, default in fields.items():
        shown = rows[name].strip("`")
        assert shown == (
            "–" if default in (None, "") else f"{default:g}" if isinstance(default, float) else str(default)
        )


def test_variables_outside_the_tables_are_documented():
    for name in ("HIDREAM_HOME", "HIDREAM_CONFIG", "HIDREAM_MODEL", "HIDREAM_API_KEY"):
        assert f"`{name}`" in read("docs/SETTINGS.md")


def test_every_route_is_documented():
    text = read("docs/API.md")
    app = create_app(settings.load({}), None)  # nothing is asked of the database here
    for path in (route.path for route in app.routes):
        shown = path.replace("{prediction_id}", "{id}").replace("{api}", "{v2,v3}")
        if path.startswith("/api/{api}/wavespeed-ai"):
            shown = "/api/v3/wavespeed-ai/hidream-i1-dev"
        assert shown in text, path


def test_every_status_is_documented():
    rows = set(re.findall(r"^\| (\d{3}) \|", read("docs/API.md"), re.MULTILINE))

    def tree(kind: type[HiDreamError]) -> set[int]:
        return {kind.http_status}.union(*(tree(child) for child in kind.__subclasses__()))

    assert {str(status) for status in tree(HiDreamError)} - {"200"} <= rows


def test_every_error_is_in_the_drawn_tree():
    import hidream.errors

    drawn = hidream.errors.__doc__ or ""

    def tree(kind: type[HiDreamError]) -> set[str]:
        return {kind.__name__}.union(*(tree(child) for child in kind.__subclasses__()))

    assert all(re.search(rf"[─ ] ?{name}\b", drawn) for name in tree(HiDreamError) if not name.startswith("_"))


def test_what_architecture_names_exists():
    text = read("ARCHITECTURE.md")
    for path, name in re.findall(r"`(\w+/\w+)\.(\w+)`", text):
        source = read(f"src/hidream/{path}.py")
        assert re.search(rf"^ *((async )?def|class) {name}\b|^{name} =", source, re.MULTILINE), f"{path}.{name}"
    assert len(text.splitlines()) <= 150


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_of_the_readme_are_commands(capsys):
    commands = set(
        re.findall(r"(?:^|[ `])hidream ([a-z]+)\b(?! is)", read("README.md") + read("docs/AUTH.md"), re.MULTILINE)
    )
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    known = capsys.readouterr().out
    assert {"generate", "serve", "keys", "info"} <= commands
    for command in commands:
        assert re.search(rf"^    {command}\b", known, re.MULTILINE), command
