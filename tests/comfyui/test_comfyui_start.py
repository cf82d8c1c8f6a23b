"""ComfyUI itself starts with our nodes, and runs a workflow."""

import pytest

pytestmark = pytest.mark.integration


def test_our_nodes_are_there_and_say_one_line(comfyui):
    log = comfyui.log.read_text()
    assert "IMPORT FAILED" not in "".join(line for line in log.splitlines() if "hidream" in line)
    assert len([line for line in log.splitlines() if line.startswith("hidream: ")]) == 1
    nodes = comfyui.http.get("/object_info").json()
    assert [node for node in nodes if node.startswith("Hidream")]


async def test_a_workflow_of_native_nodes_runs(comfyui):
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 0xFF8000}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    async with comfyui.client() as front_end:
        run = await front_end.run(workflow)
    assert run.end["type"] == "execution_success"
    (shown,) = run.images
    assert comfyui.image(shown).getpixel((0, 0)) == (255, 128, 0)
