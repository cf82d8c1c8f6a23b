"""The example workflows in ComfyUI's real front end, in Chromium."""

import importlib.util
import json

import pytest
from front_end_page import chromium, opened
from running_comfyui import ROOT

pytestmark = pytest.mark.integration
WORKFLOWS = ROOT / "comfyui" / "example_workflows"
IMAGES = ROOT / "docs" / "comfyui"
NAMES = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))


@pytest.fixture
def page(comfyui):
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: make test-comfyui installs it")
    if chromium() is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with opened(comfyui) as page:
        yield page


def api(name):
    """The API JSON of a workflow, without titles."""
    nodes = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    return {node: {key: value for key, value in row.items() if key != "_meta"} for node, row in nodes.items()}


def without_titles(prompt):
    return {node: {key: row[key] for key in ("inputs", "class_type")} for node, row in prompt.items()}


def test_there_is_a_workflow():
    assert "remote" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_workflow_of_the_front_end_is_that_of_the_api(page, name):
    page.load(json.loads((WORKFLOWS / f"{name}.json").read_text()))
    assert without_titles(page.prompt()) == api(name)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_is_dropped_loads_its_workflow(page, name):
    page.page.evaluate("() => window.app.graph.clear()")
    page.drop((IMAGES / f"{name}-image.png").read_bytes())
    page.wait_for(sorted(node["class_type"] for node in api(name).values()))
    assert without_titles(page.prompt()) == api(name)


def test_the_workflows_are_offered_as_templates(comfyui):
    offered = comfyui.http.get("/workflow_templates").raise_for_status().json()
    assert set(NAMES) <= set(offered["hidream"])
