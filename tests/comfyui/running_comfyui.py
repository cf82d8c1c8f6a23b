"""A real ComfyUI, started headless on the CPU from a checkout, and driven as its front end drives it.

`RunningComfyUI(checkout, base)` starts it in a base directory of its own: nothing is written into the checkout. Models,
inputs and outputs are in `base/models`, `base/input`, `base/output`; the nodes of this repository are linked into
`base/custom_nodes`. `client()` opens the websocket of a front end:

    async with comfyui.client() as front_end:
        run = await front_end.run(workflow)  # API JSON: {"1": {"class_type": ..., "inputs": {...}}, ...}
        image = comfyui.image(run.images[0])

The environment is that of `make test-comfyui`, which has ComfyUI's requirements beside ours: aiohttp among them.
"""

import asyncio
import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image

ROOT = Path(__file__).parents[2]
NODES = ROOT / "comfyui"
HANGS_S = 240
"""A start takes 10 s of a core; others want it too."""
LAST = ("execution_success", "execution_error", "execution_interrupted")
"""The types of the messages that end a prompt."""
FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
"""What the front end says first: it wants to know which node a preview belongs to."""
TEXT, PREVIEW = 3, 4
"""Types of binary messages (ComfyUI's `protocol.py`)."""


@dataclass
class Run:
    """What the websocket said about a prompt: `messages` are ComfyUI's, `texts` and `previews` come with their node."""

    prompt_id: str
    messages: list = field(default_factory=list)
    previews: list = field(default_factory=list)
    texts: list = field(default_factory=list)
    at_s: list = field(default_factory=list)

    @property
    def end(self):
        """The message that ended it, which others may follow; None before."""
        return next((message for message in self.messages if message["type"] in LAST), None)

    @property
    def error(self):
        """Its error, as the front end shows it."""
        assert self.end["type"] == "execution_error", self.end
        return self.end["data"]["exception_message"]

    @property
    def images(self):
        """The images that its nodes saved or showed: file name, subfolder and type of each."""
        found = [each["data"] for each in self.messages if each["type"] == "executed"]
        return [image for data in found for image in (data["output"] or {}).get("images", [])]

    def progress(self, node):
        """The progress of a node as (value, max)."""
        states = [each["data"] for each in self.messages if each["type"] == "progress"]
        return [(state["value"], state["max"]) for state in states if state["node"] == node]


class Refused(Exception):
    """ComfyUI did not accept a prompt: `said` is its response."""

    def __init__(self, said):
        super().__init__(json.dumps(said)[:2000])
        self.said = said


class RunningComfyUI:
    """A process of ComfyUI; `environ` are further environment variables, `arguments` further arguments of its own."""

    def __init__(self, checkout, base, *arguments, link=True, **environ):
        self.checkout, self.base, self.arguments = Path(checkout), Path(base), arguments
        self.log = self.base / "comfyui.log"
        for folder in ("custom_nodes", "models", "input", "output", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        if link:
            (self.base / "custom_nodes" / "hidream").symlink_to(NODES, target_is_directory=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HIDREAM_")}
        path = os.pathsep.join([str(ROOT / "src"), *filter(None, [inherited.get("PYTHONPATH")])])
        self.environ = inherited | {"PYTHONPATH": path} | environ
        self.start()

    def start(self):
        """Start it, and wait until it listens."""
        port_file = self.base / "port"
        port_file.unlink(missing_ok=True)
        own = ["--cpu", "--listen", "127.0.0.1", "--port", "0", "--base-directory", str(self.base)]
        own += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"]
        command = [sys.executable, str(Path(__file__).with_name("launch_comfyui.py")), str(port_file), *own]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                cwd=self.checkout,
                env=self.environ,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + HANGS_S
        while not port_file.exists():
            assert self.process.poll() is None, f"ComfyUI did not start:\n{self.log.read_text()[-5000:]}"
            assert time.monotonic() < deadline, f"ComfyUI does not listen:\n{self.log.read_text()[-5000:]}"
            time.sleep(0.1)
        self.url = f"http://127.0.0.1:{port_file.read_text()}"
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def stop(self):
        """End the process."""
        self.http.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)

    def node(self, name):
        """The description of a node, as the front end reads it."""
        return self.http.get(f"/object_info/{name}").raise_for_status().json()[name]

    def queue(self, workflow, client_id="", **extra_data):
        """Queue a workflow; return its prompt id. Raises Refused."""
        body = {"prompt": workflow, "client_id": client_id, "extra_data": extra_data}
        response = self.http.post("/prompt", json=body)
        if response.status_code != 200:
            raise Refused(response.json())
        return response.json()["prompt_id"]

    def interrupt(self, prompt_id=None):
        """Interrupt a prompt, or whatever runs."""
        self.http.post("/interrupt", json={"prompt_id": prompt_id} if prompt_id else {}).raise_for_status()

    def unload(self):
        """Ask for all models to be unloaded, as the front end's button does."""
        self.http.post("/free", json={"unload_models": True, "free_memory": True}).raise_for_status()

    def upload(self, image, name="image.png"):
        """Put an image into the input folder, where LoadImage finds it by the returned name."""
        file = io.BytesIO()
        image.save(file, "PNG")
        files = {"image": (name, file.getvalue(), "image/png")}
        return (
            self.http.post("/upload/image", files=files, data={"overwrite": "true"}).raise_for_status().json()["name"]
        )

    def file(self, described):
        """The bytes of an image that a run describes."""
        return self.http.get(f"/view?{urllib.parse.urlencode(described)}").raise_for_status().content

    def image(self, described):
        """An image that a run describes."""
        return Image.open(io.BytesIO(self.file(described)))

    def memory_bytes(self):
        """The memory that the process holds, without what it only maps from files."""
        import psutil

        info = psutil.Process(self.process.pid).memory_info()
        return info.rss - getattr(info, "shared", 0)

    @contextlib.asynccontextmanager
    async def client(self):
        """Open the websocket of a front end."""
        import aiohttp

        client_id = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{self.url}/ws", params={"clientId": client_id}, max_msg_size=0) as socket,
        ):
            await socket.send_json(FLAGS)
            yield FrontEnd(self, socket, client_id)


def until_idle(comfyui, timeout_s=240):
    """Wait until nothing is queued and nothing runs."""
    deadline = time.monotonic() + timeout_s
    while True:
        queue = comfyui.http.get("/queue").raise_for_status().json()
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
        assert time.monotonic() < deadline, f"ComfyUI is still busy: {queue}"
        time.sleep(0.2)


class FrontEnd:
    """One websocket, and the prompts that are queued for it."""

    def __init__(self, comfyui, socket, client_id):
        self._comfyui, self._socket, self._client_id = comfyui, socket, client_id
        self._runs = {}

    async def queue(self, workflow, **extra_data):
        """Queue a workflow; return its prompt id."""
        # In a thread: the websocket's answers to pings must not wait.
        prompt_id = await asyncio.to_thread(self._comfyui.queue, workflow, self._client_id, **extra_data)
        self._runs[prompt_id] = Run(prompt_id)
        return prompt_id

    async def run(self, workflow, on_message=None, timeout_s=240, **extra_data):
        """Queue a workflow and wait for its end; `on_message(run, message)` sees each message as it arrives."""
        return await self.wait(await self.queue(workflow, **extra_data), on_message, timeout_s)

    async def wait(self, prompt_id, on_message=None, timeout_s=240):
        """Wait for the end of a prompt, whatever it is."""
        run = self._runs[prompt_id]
        async with asyncio.timeout(timeout_s):
            while run.end is None:
                await self._receive(on_message)
        return run

    async def _receive(self, on_message):
        received = await self._socket.receive()
        assert received.data is not None, f"ComfyUI closed the websocket:\n{self._comfyui.log.read_text()[-5000:]}"
        if isinstance(received.data, str):
            message = json.loads(received.data)
            run = self._runs.get((message.get("data") or {}).get("prompt_id"))
            if run is not None:
                run.messages.append(message)
        else:
            run, message = self._binary(received.data)
        if run is not None:
            run.at_s.append(time.monotonic())
            if on_message is not None:
                on_message(run, message)

    def _binary(self, data):
        kind, length = struct.unpack(">II", data[:8])
        head, content = data[8 : 8 + length], data[8 + length :]
        if kind == PREVIEW:
            described = json.loads(head)
            run = self._runs.get(described["prompt_id"])
            if run is not None:
                run.previews.append((described["node_id"], content))
        else:  # which says no prompt: that of the one that runs
            run = next((run for run in self._runs.values() if run.end is None), None)
            if run is not None and kind == TEXT:
                run.texts.append((head.decode(), content.decode()))
        return run, {"type": "preview" if kind == PREVIEW else "text"}
