"""The node "Generate on a server", against a real server with the embedded model; ComfyUI itself is a stand-in."""

import asyncio
import json
import logging
import threading

import numpy as np
import pytest
import standin_comfyui
import torch
from hosted_api import ID, Hosted, SlowServer, served
from loaded_nodes import module
from service import PROMPT, until

import hidream
from hidream.errors import ConnectionFailed, InvalidInput, PromptRefused, TimedOut, Unauthorized

pytestmark = pytest.mark.integration
SMALL = {"width": 256, "height": 256, "num_inference_steps": 4, "seed": 7}
WATCHED = {"width": 1024, "height": 1024, "num_inference_steps": 60}
"""Takes seconds: a worker looks twice a second whether somebody watches a task, and makes previews then."""
LONG = {"width": 2048, "height": 2048, "num_inference_steps": 200, "render": "native"}


class Node:
    """The node as ComfyUI runs it."""

    def __init__(self, standin, service, monkeypatch):
        self.standin, self.service = standin, service
        self.use(service.url, service.key, monkeypatch)
        self.node = module("remote.generate").GenerateNode
        inputs = self.node.define_schema().inputs
        self.defaults = {each.id: each.default for each in inputs if hasattr(each, "default")}

    def use(self, url, key, monkeypatch):
        monkeypatch.setenv("HIDREAM_BASE_URL", url)
        monkeypatch.setenv("HIDREAM_API_KEY", key)

    async def __call__(self, prompt=PROMPT, timeout_s=240, **values):
        server = module("remote.server").Server("", "HIDREAM_API_KEY", timeout_s)
        values = self.defaults | {"model": "dev"} | values
        done = await self.node.prepared("7").execute(server=server, **values | {"prompt": prompt})
        images, seed, info, details = done.args
        assert [each.seed for each in details] == [None if seed == -1 else seed + i for i in range(len(images))]
        assert {each.version for each in details} == {json.loads(info)["version"] or None}
        return images, seed, json.loads(info)

    def statuses(self):
        """The states of all tasks of the key, newest first."""
        with hidream.Client(self.service.url, self.service.key) as client:
            return [task.status for task in client.list()]


@pytest.fixture
def node(standin, service, monkeypatch):
    return Node(standin, service, monkeypatch)


def files_pixels(result):
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in result.images])) / 255


async def test_the_images_are_the_servers(node, service):
    images, seed, info = await node(**SMALL, num_images=2)
    assert (tuple(images.shape), images.dtype, seed) == ((2, 256, 256, 3), torch.float32, 7)
    with hidream.Client(service.url, service.key) as client:
        result = client(PROMPT, size="256x256", num_inference_steps=4, seed=7, num_images=2)
    assert torch.equal(images, files_pixels(result))
    assert (info["seed"], info["version"], info["model"]) == (7, result.version, "wavespeed-ai/hidream-i1-dev")


async def test_progress_previews_and_texts(node):
    await node(**SMALL | WATCHED)
    steps = [step for step, _ in node.standin.progress]
    assert steps == sorted(steps)
    assert {of for _, of in node.standin.progress} == {60}
    assert node.standin.previews
    assert all((kind, image.mode, size) == ("JPEG", "RGB", None) for kind, image, size in node.standin.previews)
    assert {image.size for _, image, _ in node.standin.previews} == {(512, 512)}
    assert {node_id for node_id, _ in node.standin.texts} == {"7"}
    assert node.standin.texts[-1][1].startswith("seed 7, ")


async def test_image_and_mask_are_uploaded(node, service):
    image = torch.zeros(1, 256, 256, 3)
    image[..., 0] = 1  # red
    mask = torch.zeros(1, 256, 256)
    mask[:, :, 128:] = 1
    options = {**SMALL, "num_inference_steps": 8, "strength": 1.0}
    images, _, _ = await node(**options, image=image, mask=mask)
    assert (images[0, :, :96] - image[0, :, :96]).abs().mean() < 0.05
    assert not torch.allclose(images[0, :, 160:], image[0, :, 160:], atol=0.05)
    own_size, _, _ = await node(**options | {"width": 0, "height": 0}, image=torch.rand(1, 264, 328, 3))
    assert tuple(own_size.shape) == (1, 264, 328, 3)
    with pytest.raises(InvalidInput, match="image has 2 images; accepted: one"):
        await node(**options, image=torch.zeros(2, 256, 256, 3))
    with pytest.raises(InvalidInput, match="mask"):
        await node(**options, mask=mask)


async def test_several_at_once(node):
    seeds = (1, 2, 3)
    done = await asyncio.gather(*(node(**SMALL | {"seed": seed}) for seed in seeds))
    assert [seed for _, seed, _ in done] == list(seeds)
    alone, _, _ = await node(**SMALL | {"seed": 2})
    assert torch.equal(done[1][0], alone)


async def test_an_interruption_cancels_the_task(node):
    running = asyncio.ensure_future(node(**LONG))
    await asyncio.to_thread(until, lambda: node.standin.progress or running.done(), 240)
    node.standin.interruption.set()
    with pytest.raises(standin_comfyui.InterruptProcessingException):
        await running
    assert node.statuses()[0] == "cancelled"


def cancelled_by_comfyui(node, when, **values):
    """Run the node as ComfyUI does when another node of the prompt fails: `asyncio.run` cancels what is left."""
    left = []

    async def prompt():
        left.append(asyncio.ensure_future(node(**values)))
        while not when():
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=asyncio.run, args=(prompt(),))
    thread.start()
    thread.join(120)
    assert left[0].cancelled()


def test_comfyui_that_cancels_everything_cancels_the_task(node):
    cancelled_by_comfyui(node, lambda: node.standin.texts or node.standin.progress, **LONG)
    assert node.statuses()[0] == "cancelled"


def test_a_submission_that_comfyui_cancels_halfway_leaves_no_task(node, monkeypatch):
    """Whether the server has it is not known: the same Idempotency-Key gives the same task, which is cancelled."""
    with served(SlowServer()) as slow:
        node.use(slow.url, "a key", monkeypatch)
        cancelled_by_comfyui(node, slow.received.is_set)
        slow.release.set()
        assert len(slow.submitted) == 2
        assert len(set(slow.submitted)) == 1
        assert slow.cancelled == [ID]


async def test_a_submission_that_is_interrupted_halfway_leaves_no_task(node, monkeypatch):
    with served(SlowServer()) as slow:
        node.use(slow.url, "a key", monkeypatch)
        running = asyncio.ensure_future(node())
        assert await asyncio.to_thread(slow.received.wait, 60)
        node.standin.interruption.set()
        slow.release.set()
        with pytest.raises(standin_comfyui.InterruptProcessingException):
            await running
        assert (len(slow.submitted), slow.cancelled) == (1, [ID])


async def test_a_timeout_cancels_the_task(node):
    with pytest.raises(TimedOut):
        await node(**LONG, timeout_s=1)
    assert node.statuses()[0] == "cancelled"


async def test_errors_say_what_is_wrong_and_never_the_key(node, service, monkeypatch, caplog):
    with pytest.raises(PromptRefused):
        await node("a naked child", **SMALL)
    with pytest.raises(InvalidInput, match="prompt is empty"):
        await node(" ", **SMALL)
    with pytest.raises(InvalidInput, match="height is absent"):
        await node(**SMALL | {"height": 0})
    with pytest.raises(InvalidInput, match="loras"):
        await node(**SMALL, loras="unknown:0.5")
    node.use(service.url, "hd_wrong", monkeypatch)
    with pytest.raises(Unauthorized) as refused:
        await node(**SMALL)
    assert "hd_wrong" not in f"{refused.value}{caplog.text}"
    node.use("http://127.0.0.1:1", "hd_wrong", monkeypatch)
    with pytest.raises((ConnectionFailed, TimedOut), match=r"127\.0\.0\.1:1"):
        await node(**SMALL, timeout_s=1)


async def test_the_hosted_api_is_polled(node, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with served(Hosted()) as hosted:
        node.use(hosted.url, "hosted key", monkeypatch)
        images, seed, _ = await node(width=64 * 8, height=32 * 16)
        assert tuple(images.shape) == (1, 32, 64, 3)
        assert (images[0, 0, 0] * 255).round().tolist() == [255, 128, 0]
        assert seed == -1
        assert hosted.bodies == [{"prompt": PROMPT, "output_format": "png", "size": "512*512"}]
        assert "Bearer hosted key" in hosted.keys
    assert "hosted key" not in caplog.text
