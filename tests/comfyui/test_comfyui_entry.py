"""What ComfyUI gets of our nodes at its start."""

import sys

import loaded_nodes
import pytest


async def test_a_python_without_hidream_is_told_how_to_get_it(standin, monkeypatch):
    package = sys.modules[loaded_nodes.NAME]
    monkeypatch.setitem(sys.modules, "hidream", None)
    with pytest.raises(ImportError, match=r"the nodes need hidream.*-m pip install hidream") as refused:
        await package.comfy_entrypoint()
    assert sys.executable in str(refused.value)
