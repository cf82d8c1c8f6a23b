"""The stand-in takes no argument that the real ComfyUI does not take; only with a real one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import standin_comfyui

pytestmark = pytest.mark.integration
ASKED = """
import inspect, json, sys
sys.path.insert(0, "."); sys.argv = [sys.argv[0], "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
from comfy_api.v0_0_2 import ComfyExtension, io
import comfy.model_management, comfy.utils, folder_paths
def names(function): return [name for name in inspect.signature(function).parameters if name != "self"]
said = {name: names(getattr(io, name).Input.__init__) for name in json.loads(sys.stdin.read())}
said["Output"] = names(io.Image.Output.__init__)
said["Schema"] = names(io.Schema)
said["Custom"] = names(io.Custom)
said["ProgressBar"] = names(comfy.utils.ProgressBar)
said["update_absolute"] = names(comfy.utils.ProgressBar.update_absolute)
said["processing_interrupted"] = names(comfy.model_management.processing_interrupted)
said["get_user_directory"] = names(folder_paths.get_user_directory)
assert issubclass(comfy.model_management.InterruptProcessingException, Exception)
assert io.Hidden.unique_id.value == "UNIQUE_ID" and io.NodeOutput(1, 2).args == (1, 2) and ComfyExtension
print(json.dumps(said))
"""


def test_the_stand_in_is_as_narrow_as_comfyui(comfyui_checkout):
    names = [*standin_comfyui.INPUTS]
    command = [sys.executable, "-c", ASKED]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=comfyui_checkout, input=json.dumps(names)
    )
    assert done.returncode == 0, done.stderr
    real = json.loads(done.stdout.splitlines()[-1])
    for name, (_, options) in standin_comfyui.INPUTS.items():
        assert {"id", *options} <= set(real[name]), name
    assert {"id", "display_name", "tooltip"} <= set(real["Output"])
    schema = {"node_id", "display_name", "category", "inputs", "outputs", "hidden", "description"}
    assert schema <= set(real["Schema"])
    assert (real["Custom"], real["ProgressBar"][:1]) == (["io_type"], ["total"])
    assert real["update_absolute"] == ["value", "total", "preview"]
    assert real["processing_interrupted"] == real["get_user_directory"] == []
    server = (Path(comfyui_checkout) / "server.py").read_text()
    assert (
        "def send_progress_text(\n        self, text: Union[bytes, bytearray, str], node_id: str, sid=None\n" in server
    )
