"""Writes the example workflows from their API JSON, with ComfyUI's own front end.

    COMFYUI=path python tests/comfyui/write_workflows.py [NAME ...]

For each `comfyui/example_workflows/api/NAME.json`, in a ComfyUI that it starts:

- `comfyui/example_workflows/NAME.json`: the UI JSON, which ComfyUI offers as a template;
- `docs/comfyui/NAME.png`: a screenshot of the graph.

`--models FOLDER` is ComfyUI's folder of models, for local workflows. With `--run`, also `docs/comfyui/NAME-image.png`:
the image that the workflow generates, which carries it.
A remote workflow needs a hidream server: HIDREAM_BASE_URL and HIDREAM_API_KEY.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import front_end_page
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from running_comfyui import ROOT, RunningComfyUI, until_idle

WORKFLOWS = ROOT / "comfyui" / "example_workflows"
IMAGES = ROOT / "docs" / "comfyui"
LOCAL = {
    "1": [40, 120, 340, 260],
    "2": [420, 120, 380, 220],
    "5": [420, 420, 380, 220],
    "3": [840, 120, 340, 440],
    "4": [1220, 120, 380, 480],
}
PLACES = {"remote": {"1": [40, 120, 320, 130], "2": [420, 40, 420, 900], "3": [900, 120, 420, 460]}}
PLACES |= dict.fromkeys(("dev", "full", "fast", "lora"), LOCAL)
"""Where nodes are shown, by workflow: x, y, width, height; the front end places the others itself."""


def write(comfyui, name, *, run):
    """Write the files of one workflow."""
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    with front_end_page.opened(comfyui) as page:
        page.load_api(api, name)
        page.place(PLACES.get(name, {}))
        workflow = page.workflow()
        (WORKFLOWS / f"{name}.json").write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n")
        if run:
            before = set((comfyui.base / "output").rglob("*.png"))
            page.queue()
            until_idle(comfyui)
            made = set((comfyui.base / "output").rglob("*.png")) - before
            assert len(made) == 1, f"{name} has made {len(made)} images:\n{comfyui.log.read_text()[-3000:]}"
            reduce(made.pop(), IMAGES / f"{name}-image.png")
        page.screenshot(IMAGES / f"{name}.png")


def reduce(image, target):
    """Write an image with 256 colours and all its texts: a third of the bytes, for the documents."""
    opened, texts = Image.open(image), PngInfo()
    for key, text in opened.text.items():
        texts.add_text(key, text)
    reduced = opened.convert("RGB").quantize(256)
    reduced.save(target, optimize=True, pnginfo=texts, exif=opened.getexif())


def main():
    """Write the workflows that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    server = {name: os.environ[name] for name in ("HIDREAM_BASE_URL", "HIDREAM_API_KEY") if name in os.environ}
    with tempfile.TemporaryDirectory() as base:
        if arguments.models:
            (Path(base) / "models").symlink_to(arguments.models.resolve())
        comfyui = RunningComfyUI(os.environ["COMFYUI"], base, **server)
        try:
            for name in arguments.names or sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")):
                write(comfyui, name, run=arguments.run)
        finally:
            comfyui.stop()


if __name__ == "__main__":
    main()
