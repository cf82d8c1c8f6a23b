"""ComfyUI's own front end in Chromium, driven by playwright: workflows are loaded, dropped, queued and shown.

A page belongs to a `RunningComfyUI`. Chromium is Debian's (`apt-get install chromium`), playwright PyPI's.
"""

import base64
import contextlib
import io
import json
import shutil
import time

from PIL import Image

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.VersionCompatibility.DisableWarnings": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
"""What the front end does not ask, so that a screenshot shows the graph."""
READY = "() => window.app && window.app.graph && window.app.extensionManager"
LOAD_API = "async ([workflow, name]) => { await window.app.loadApiJson(workflow, name) }"
LOAD = "async (workflow) => { await window.app.loadGraphData(workflow) }"
FIT = "async () => { await window.app.extensionManager.command.execute('Comfy.Canvas.FitView') }"
DROP = """([encoded, name]) => {
    const bytes = Uint8Array.from(atob(encoded), (each) => each.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, { type: "image/png" }));
    const canvas = document.getElementById("graph-canvas");
    for (const kind of ["dragenter", "dragover", "drop"])
        canvas.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
PLACE = """(places) => {
    for (const node of window.app.graph.nodes) {
        const [x, y, width, height] = places[node.id] ?? [node.pos[0], node.pos[1], node.size[0], node.size[1]];
        node.pos = [x, y];
        node.setSize([width, Math.max(height, node.computeSize()[1])]);
        for (const widget of node.widgets ?? [])
            if (widget.name === "control_after_generate") widget.value = "fixed";
    }
    window.app.graph.setDirtyCanvas(true, true);
}"""
TYPES = "() => window.app.graph.nodes.map((node) => node.type).sort()"


def chromium():
    """The path of Chromium; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def opened(comfyui, width_px=1600, height_px=1000):
    """Open the front end of a running ComfyUI."""
    from playwright.sync_api import sync_playwright

    comfyui.http.post("/settings", json=SETTINGS).raise_for_status()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width_px, "height": height_px})
            page.set_default_timeout(120_000)
            page.goto(comfyui.url)
            page.wait_for_function(READY)
            yield FrontEndPage(page)
        finally:
            browser.close()


class FrontEndPage:
    """The open page."""

    def __init__(self, page):
        self.page = page

    def load_api(self, workflow, name="workflow"):
        """Load API JSON; the front end makes the nodes and links."""
        self.page.evaluate(LOAD_API, [workflow, name])

    def load(self, workflow):
        """Load UI JSON."""
        self.page.evaluate(LOAD, workflow)

    def drop(self, file, name="workflow.png"):
        """Drop an image file onto the graph, as a user does."""
        self.page.evaluate(DROP, [base64.b64encode(file).decode(), name])

    def place(self, places):
        """Put nodes where they are easy to read: `places` has x, y, width and height by id. Seeds stay as they are."""
        self.page.evaluate(PLACE, {str(node): place for node, place in places.items()})

    def types(self):
        """The types of the nodes that are there, sorted."""
        return self.page.evaluate(TYPES)

    def wait_for(self, types):
        """Wait until exactly nodes of these types are there."""
        self.page.wait_for_function(
            f"(types) => JSON.stringify(({TYPES})()) === types", arg=json.dumps(types, separators=(",", ":"))
        )

    def workflow(self):
        """The workflow as the front end saves it: UI JSON."""
        return self.page.evaluate("() => window.app.graph.serialize()")

    def prompt(self):
        """The workflow as the front end would queue it: API JSON."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def queue(self):
        """Queue the workflow, as the button does."""
        self.page.evaluate("async () => { await window.app.queuePrompt(0) }")

    def screenshot(self, path):
        """Write what is shown, with the whole graph in view; 256 colours make it a quarter as large."""
        self.page.evaluate(FIT)
        time.sleep(1.5)  # the view moves there; nothing says when it has arrived
        shown = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        shown.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
