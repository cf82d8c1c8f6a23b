"""The docs name every setting, route, flag and status."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from hidream import cli, mcp_server
from hidream.commands.setting_flags import MODELS, settings_of
from hidream.errors import HiDreamError
from hidream.formats.quantized import GGUF_WRITABLE
from hidream.formats.targets import TYPES, Format
from hidream.hub.catalogue import CATALOGUE
from hidream.server.app import create_app
from hidream.server.metrics import Metrics
from hidream.server.parameters import WIRE
from hidream.server.service import assemble
from hidream.settings import sources, tables
from hidream.types import SAMPLING_PRESETS, STEPS_MAX, Conformance, Render, Sampler, Variant, WeightFormat
from hidream.webhooks.delivery import ATTEMPTS_MAX, DELAYS_S
from parameter_tables import filled

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.mark.parametrize("table", tables.TABLES)
def test_every_setting_is_documented_with_its_default(table):
    section = read("docs/SETTINGS.md").split(f"| `[{table}]` |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE))
    fields = {f.name: f.default for f in dataclasses.fields(tables.TABLES[table])}
    assert rows.keys() == fields.keys()
    for name, default in fields.items():
        shown = rows[name].strip("`")
        assert shown == (
            "–" if default in (None, "") else f"{default:g}" if isinstance(default, float) else str(default)
        )


def test_variables_outside_the_tables_are_documented():
    for name in ("HIDREAM_HOME", "HIDREAM_CONFIG", "HIDREAM_MODEL", "HIDREAM_API_KEY", "HIDREAM_BASE_URL"):
        assert f"`{name}`" in read("docs/SETTINGS.md")


def test_every_route_is_documented():
    text = read("docs/API.md")
    app = create_app(assemble(sources.load({}), None))  # nothing is asked of the database here
    for path in (route.path for route in app.routes):
        shown = path.replace("{prediction_id}", "{id}").replace("{api}", "{v2,v3}").replace(":path}", "}")
        shown = shown.replace("wavespeed-ai/{name}", "wavespeed-ai/{model}")
        assert shown in text, path


def test_the_tables_of_parameters_are_those_of_what_is_declared():
    page = read("docs/API.md")
    assert filled(page) == page, "run `make tables`"
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE))
    assert {parameter.name for parameter in WIRE} <= rows.keys()
    for variant, preset in SAMPLING_PRESETS.items():
        assert f"{variant.title()} {preset.steps}" in rows["num_inference_steps"]
        assert re.search(rf"{variant.title()}( and \w+)* {preset.shift:g}", rows["shift"])
    assert rows["guidance_scale"].startswith(
        f"Full {SAMPLING_PRESETS[Variant.FULL].guidance:g} | a number from 0 to 30; "
    )
    assert f"1 to {STEPS_MAX}" in rows["num_inference_steps"]
    assert rows["mode"].startswith("`exact` | `exact`, `balanced`, `turbo`; ")


def test_every_page_says_when_webhooks_are_attempted():
    rows = [line.strip("| ").split(" | ") for line in read("docs/WEBHOOKS.md").splitlines() if line.startswith("| ")]
    (waits,) = (row[1:] for row in rows if row[0] == "waits")
    seconds = {"s": 1, "min": 60, "h": 3600}
    assert tuple(int(n) * seconds[unit] for n, unit in map(str.split, waits)) == DELAYS_S
    hours = f"{sum(DELAYS_S) / 3600:.1f} hours"
    assert f"That is {hours} in all" in read("docs/WEBHOOKS.md")
    assert f"{ATTEMPTS_MAX} attempts in {hours}" in read("docs/OPERATIONS.md")
    assert f"all {hours}" in read("src/hidream/webhooks/delivery.py")


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
    named = re.findall(r"`(\w+(?:/\w+)+)(?:\.(\w+(?:\.\w+)*))?`", text)
    assert {path.count("/") for path, _ in named} >= {1, 2}
    for path, names in named:
        root = ROOT if path.startswith(("tests/", "docs/")) else ROOT / "src/hidream"
        file, name = root / f"{path}.py", names.split(".")[0]
        assert file.is_file() or (not name and (root / path).is_dir()), path
        source = file.read_text() if file.is_file() else ""
        assert name in ("", "py") or re.search(
            rf"^ *((async )?def|class) {name}\b|^{name}(: .+)? =", source, re.MULTILINE
        ), f"{path}.{name}"
    assert len(text.splitlines()) <= 240  # four pages


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
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
        assert re.search(rf"^  {command}\b", known, re.MULTILINE), command


def commands_of(name: str) -> list[list[str]]:
    """Every `hidream …` of a page's blocks, without `hidream` itself and what the shell makes of the line."""
    blocks = re.findall(r"^```(\w*)(?: .*?)?\n(.*?)^```$", read(name), re.MULTILINE | re.DOTALL)
    shell = "\n".join(text for language, text in blocks if not language).replace("\\\n", " ")
    lines = re.findall(r"^(?:\w+=\S+ )*hidream (.+)$", shell, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/MODELS.md",
        "docs/MEMORY.md",
        "docs/OPERATIONS.md",
        "docs/MCP.md",
        "docs/start/api.md",
        "docs/start/artist.md",
        "docs/start/operator.md",
        "docs/start/ml.md",
    ],
)
def test_commands_are_understood(name):
    commands = commands_of(name)
    assert commands
    for typed in commands:
        sources.load({}, settings_of(cli.parse(typed)[1]))


def test_models_names_every_way_to_name_a_part():
    text = read("docs/MODELS.md")
    used = {flag for typed in commands_of("docs/MODELS.md") for flag in typed if flag.startswith("--")}
    assert {sources.flag_name("models", part) for part in MODELS} <= used
    assert all(f"`{choice}`" in text for kind in (WeightFormat, Conformance, Render, Sampler) for choice in kind)
    for kind in (*GGUF_WRITABLE, *TYPES[Format.COMFY]):
        assert re.search(rf"\b{kind}\b", text), kind


def test_models_names_every_variants_preset():
    rows = dict(re.findall(r"^\| (Dev|Full|Fast) \| (.+) \|$", read("docs/MODELS.md"), re.MULTILINE))
    for variant, preset in SAMPLING_PRESETS.items():
        steps, guidance, shift, sampler = rows[variant.title()].split(" | ")
        assert (steps, shift, sampler) == (str(preset.steps), f"{preset.shift:g}", f"`{preset.sampler}`")
        assert guidance.split(",")[0] == (f"{preset.guidance:g}" if preset.guidance > 1 else "–")


@pytest.mark.parametrize(("page", "count"), [("docs/MODELS.md", 6), ("README.md", 4)])
def test_pages_say_of_memory_what_memory_says(page, count):
    """tests/model/test_plan_report.py holds MEMORY.md against the plan."""
    said = read("docs/MEMORY.md").split("<!-- dev-64 -->")[1].split("<!-- end -->")[0]
    rows = re.findall(r"^\| (\d+ GB) \| (int8|compute) \| (.+) \|$", read(page), re.MULTILINE)
    assert len(rows) >= count
    for card, storage, happens in rows:
        assert re.search(rf"^\| {card} \| {storage} .* transformer: {re.escape(happens)};", said, re.MULTILINE), card


def test_the_readme_says_what_a_model_without_a_card_needs():
    said = read("docs/MEMORY.md").split("<!-- cpu -->")[1].split("<!-- end -->")[0]
    (smallest,) = re.findall(r"^\| (\d+ GB) \| stored \| stored, stored .*: mapped;", said, re.MULTILINE)
    assert f"Without a card, {smallest} of memory suffice for the published 16 bits" in " ".join(
        read("README.md").split()
    )


def test_pages_say_of_downloads_what_the_catalogue_says():
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| `(\w+)`.* \| `(.+?)`.* \| (.+?) \| (.+) \|$", read("README.md"), re.M)
    }
    for entry in CATALOGUE.values():
        repository, size, licence = rows[{"fast": "full"}.get(entry.name, entry.name)]
        assert repository == {"fast": CATALOGUE["full"]}.get(entry.name, entry).repository
        assert size.startswith(f"{entry.size_gb:.1f} GB")
        assert licence == entry.licence + "; gated" * bool(entry.free_copy)
        assert all(f"`{copy}`" in read("docs/MODELS.md") for copy in entry.copies)
    assert f"| {CATALOGUE['dev'].size_gb:.1f} GB each, everything except Llama." in read("docs/MODELS.md")


def test_the_errors_of_models_are_errors_of_ours():
    sources = [ast.parse(path.read_text()) for path in (ROOT / "src" / "hidream").rglob("*.py")]
    texts = {node.value for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    section = read("docs/MODELS.md").split("## Errors and what they mean")[1]
    parts = [part for cell in re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE) for part in cell.split("`")[1::2]]
    assert len(parts) > 20
    for part in parts:
        assert any(part in text for text in texts if isinstance(text, str)), part


def test_every_metric_is_documented_with_its_labels():
    described = {}
    for name, labels in re.findall(r"^\| `(hidream_\w+)` \|([^|]*)\|", read("docs/OPERATIONS.md"), re.MULTILINE):
        described[name.removesuffix("_total")] = tuple(re.findall(r"`(\w+)`", labels))
    collectors = set(Metrics(None, 15)._registry._collector_to_names)
    assert described == {each._name: tuple(each._labelnames) for each in collectors}


async def test_the_tool_of_mcp_is_documented():
    rows = set(re.findall(r"^\| `(\w+)` \|", read("docs/MCP.md"), re.MULTILINE))
    (tool,) = await mcp_server.build(mcp_server.Caller("http://x", "k", 1)).list_tools()
    assert rows == tool.input_schema["properties"].keys()


def test_operations_names_what_is_configured():
    text = read("docs/OPERATIONS.md")
    for table, key in re.findall(r"`\[(\w+)\] (\w+)`", text):
        assert key in {f.name for f in dataclasses.fields(tables.TABLES[table])}, f"[{table}] {key}"
    for event in re.findall(r"`((?:task|webhook)_\w+)`", text.split("## Logs")[1].split("##")[0]):
        sources = "".join(path.read_text() for path in (ROOT / "src" / "hidream").rglob("*.py"))
        assert f'"{event} ' in sources, event


def test_the_readme_says_the_figures_of_the_performance_page():
    rows = {
        row[0]: row[1:] for row in re.findall(r"^\| (.+?) \| .*? \| (\d+) [^|]*\|", read("docs/PERFORMANCE.md"), re.M)
    }
    (overhead,) = rows["overhead of a sync-mode request beyond its image, the image check and the encoder"]
    (submissions,) = rows["the same while a worker generates images"]
    text = " ".join(read("README.md").split())
    assert f"The service adds {overhead} ms to a sync request" in text
    assert f"acknowledges {submissions} submissions a second" in text
