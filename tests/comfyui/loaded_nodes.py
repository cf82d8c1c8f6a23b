"""Our nodes, loaded as ComfyUI loads a custom node: from their folder, under a name of its own."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "comfyui"
NAME = "custom_nodes_hidream"


def load(monkeypatch):
    """Load the package; `monkeypatch` forgets it and its modules again."""
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.spec_from_file_location(
        NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, NAME, package)
    spec.loader.exec_module(package)
    return package


def module(name):
    """A module of the package that was loaded last."""
    return importlib.import_module(f"{NAME}.{name}")
