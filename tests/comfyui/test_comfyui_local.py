"""The local nodes in a real ComfyUI: nano, converted to ComfyUI's files, gives the image of hidream's library."""

import asyncio
import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from running_comfyui import NODES, ROOT, RunningComfyUI
from safetensors.torch import load_file, save_file

import hidream

pytestmark = pytest.mark.integration

PROMPT = "cartoon a fox in the snow"
SIZE = 256
LOG_LOADS = "Requested to load HiDream"


@pytest.fixture(scope="module")
def local(comfyui_checkout, tmp_path_factory):
    """A ComfyUI whose folders have nano's dev and full as `hidream convert` writes them, and a LoRA."""
    base = tmp_path_factory.mktemp("local")
    for variant in ("dev", "full"):
        convert(variant, base / variant)
    models = base / "models"
    (base / "dev").rename(models)
    (base / "full" / "diffusion_models" / "full.safetensors").rename(models / "diffusion_models" / "full.safetensors")
    (models / "loras" / "styles").mkdir(parents=True)
    save_file(lora(), models / "loras" / "styles" / "ink.safetensors")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "nano_native").symlink_to(NODES.parent / "tests" / "comfyui" / "nano_native")
    running = RunningComfyUI(comfyui_checkout, base, HIDREAM_HOME=str(base / "home"))
    yield running
    running.stop()


def convert(variant, target):
    """Nano as ComfyUI's files; its variants share all parts but the transformer, and stand beside dev."""
    nano = ROOT / "src" / "hidream" / "nano"
    whole = target.parent / "sources" / variant
    whole.mkdir(parents=True)
    for source in (nano / "dev", nano / variant):
        for part in source.iterdir():
            (whole / part.name).unlink(missing_ok=True)
            (whole / part.name).symlink_to(part)
    hidream_cli = [sys.executable, "-m", "hidream.cli", "convert", str(whole), str(target), "--to", "comfy"]
    subprocess.run(hidream_cli, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    (file,) = (target / "diffusion_models").iterdir()
    file.rename(file.with_name(f"{variant}.safetensors"))


def lora():
    generator = torch.Generator().manual_seed(9)
    name = "diffusion_model.double_stream_blocks.0.block.attn1.to_q"
    return {
        f"{name}.lora_A.weight": torch.randn(4, 192, generator=generator),
        f"{name}.lora_B.weight": torch.randn(192, 4, generator=generator),
    }


@pytest.fixture(scope="module")
def library(local):
    """The same files in the library."""
    opened = {}

    def pipeline(variant):
        if variant not in opened:
            models = local.base / "models"
            opened[variant] = hidream.Pipeline.from_pretrained(
                models / "diffusion_models" / f"{variant}.safetensors", loras=models / "loras" / "styles"
            )
        return opened[variant]

    return pipeline


class Graph:
    """A workflow in the API's form: `add` returns the number of a node, (number, output) is a link."""

    def __init__(self):
        self.nodes = {}

    def add(self, kind, **inputs):
        number = str(len(self.nodes) + 1)
        links = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
        self.nodes[number] = {"class_type": kind, "inputs": links}
        return number

    def load(self, model="dev.safetensors", **chosen):
        return self.add("HidreamLoad", **{"model": model, "variant": "auto", "weights": "auto"} | chosen)

    def encode(self, model, prompt=PROMPT, **own):
        return self.add("HidreamEncode", hidream=(model, 0), prompt=prompt, safety_checker=True, **own)

    def sample(self, model, positive, **settings):
        usual = {"width": SIZE, "height": SIZE, "seed": 7, "steps": 0, "guidance": -1.0, "shift": 0.0, "strength": 1.0}
        usual |= {"sampler": "preset", "mode": "exact", "render": "best", "previews": False}
        return self.add("HidreamSample", hidream=(model, 0), positive=(positive, 0), **usual | settings)

    def save(self, sampled, **settings):
        usual = {"filename_prefix": "test", "file_format": "png", "quality": 0}
        return self.add("HidreamSave", images=(sampled, 1), details=(sampled, 2), **usual | settings)


def text_to_image(model="dev.safetensors", prompt=PROMPT, chosen=None, **settings):
    graph = Graph()
    loaded = graph.load(model, **chosen or {})
    sampled = graph.sample(loaded, graph.encode(loaded, prompt), **settings)
    graph.save(sampled)
    return graph.nodes


async def run(local, workflow, on_message=None, **extra):
    async with local.client() as front_end:
        return await front_end.run(workflow, on_message, **extra)


async def pixels_of(local, workflow):
    finished = await run(local, workflow)
    assert finished.end["type"] == "execution_success", finished.end
    return np.asarray(local.image(finished.images[0]))


@pytest.mark.parametrize(
    ("variant", "settings", "keywords"),
    [
        ("dev", {}, {}),
        ("dev", {"width": 300, "height": 260, "seed": 9_999_999_999, "mode": "turbo"}, {"mode": "turbo"}),
        ("dev", {"sampler": "euler", "steps": 6, "shift": 2.0}, {"sampler": "euler", "steps": 6, "shift": 2}),
        ("full", {"steps": 8}, {"steps": 8}),
        ("full", {"steps": 4, "guidance": 1.0, "render": "native"}, {"steps": 4, "guidance": 1, "render": "native"}),
    ],
)
async def test_the_image_is_the_librarys(local, library, variant, settings, keywords):
    shown = await pixels_of(local, text_to_image(f"{variant}.safetensors", **settings))
    seed = settings.get("seed", 7)
    size = (settings.get("width", SIZE), settings.get("height", SIZE))
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    options = {names.get(name, name): value for name, value in keywords.items()}
    expected = library(variant)(PROMPT, seed=seed, size=size, **options)
    assert np.array_equal(shown, expected.pixels)


async def test_texts_for_single_encoders_and_a_negative_prompt(local, library):
    graph = Graph()
    loaded = graph.load("full.safetensors")
    own = graph.add("PrimitiveString", value="a blue square")
    positive = graph.encode(loaded, llama=(own, 0))
    sampled = graph.sample(loaded, positive, negative=(graph.encode(loaded, "green"), 0), steps=6)
    graph.save(sampled)
    prompts = hidream.Prompts(PROMPT, llama="a blue square")
    expected = library("full")(prompts, negative_prompt="green", seed=7, size=(SIZE, SIZE), num_inference_steps=6)
    assert np.array_equal(await pixels_of(local, graph.nodes), expected.pixels)


async def test_a_lora_is_applied_as_in_the_library(local, library):
    graph = Graph()
    loaded = graph.load()
    slots = {f"lora_{i}": "none" for i in range(1, 5)} | {f"weight_{i}": 1.0 for i in range(1, 5)}
    stack = graph.add("HidreamLoras", **slots | {"lora_2": "styles/ink.safetensors", "weight_2": 0.5})
    sampled = graph.sample(loaded, graph.encode(loaded), loras=(stack, 0), steps=6)
    graph.save(sampled)
    shown = await pixels_of(local, graph.nodes)
    options = {"seed": 7, "size": (SIZE, SIZE), "num_inference_steps": 6}
    assert np.array_equal(shown, library("dev")(PROMPT, loras=("ink", 0.5), **options).pixels)
    assert not np.array_equal(shown, library("dev")(PROMPT, **options).pixels)


async def test_native_samplers_take_our_conditioning_and_are_accelerated(local, library):
    """Native, accelerated: the same latent; and our autoencoder decodes it to an image of the prompt."""
    graph = Graph()
    loaded = graph.load()
    native = graph.add("NanoNative", variant="dev")
    fast = graph.add("HidreamAccelerate", model=(native, 0), mode="exact")
    empty = graph.add("EmptySD3LatentImage", width=SIZE // 2, height=SIZE // 2, batch_size=1)  # 8 pixels a cell there
    positive = graph.encode(loaded)
    for model, name in ((native, "native"), (fast, "fast")):
        model = graph.add("ModelSamplingSD3", model=(model, 0), shift=6.0)
        sampled = graph.add(
            "KSampler",
            model=(model, 0),
            positive=(positive, 0),
            negative=(positive, 0),
            latent_image=(empty, 0),
            seed=7,
            steps=28,
            cfg=1.0,
            sampler_name="lcm",
            scheduler="normal",
            denoise=1.0,
        )
        graph.add("SaveLatent", samples=(sampled, 0), filename_prefix=f"latent-{name}")
        decoded = graph.add("HidreamDecode", hidream=(loaded, 0), latent=(sampled, 0), tile=0)
        graph.add("HidreamSave", images=(decoded, 0), filename_prefix=name, file_format="png", quality=0)
    finished = await run(local, graph.nodes)
    assert finished.end["type"] == "execution_success", finished.end
    latents = [latent(local, name) for name in ("native", "fast")]
    assert (latents[0] - latents[1]).abs().max() <= 1e-4 * latents[0].abs().max()
    shown = np.asarray(local.image(finished.images[0])).astype(float)
    ours = library("dev")(PROMPT, seed=7, size=(SIZE, SIZE)).pixels
    apart, varied = np.abs(shown - ours).mean(), np.abs(ours - ours.mean((0, 1))).mean()
    assert apart < 0.4 * varied, "the same image, but for the noise of the later steps"


async def test_image_to_image_and_inpainting(local):
    graph = Graph()
    loaded = graph.load()
    positive = graph.encode(loaded)
    first = graph.sample(loaded, positive, steps=8)
    own = {"width": 0, "height": 0, "steps": 8, "latent": (first, 0)}
    again = graph.sample(loaded, graph.encode(loaded, "cartoon an owl"), strength=0.4, **own)
    mask = graph.add("SolidMask", value=1.0, width=SIZE // 2, height=SIZE)
    nothing = graph.add("SolidMask", value=0.0, width=SIZE, height=SIZE)
    right = graph.add("MaskComposite", destination=(nothing, 0), source=(mask, 0), x=SIZE // 2, y=0, operation="add")
    masked = graph.add("SetLatentNoiseMask", samples=(first, 0), mask=(right, 0))
    inpainted = graph.sample(loaded, positive, **own | {"latent": (masked, 0), "seed": 8})
    for name, sampled in (("first", first), ("again", again), ("inpainted", inpainted)):
        graph.save(sampled, filename_prefix=name)
        graph.add("SaveLatent", samples=(sampled, 0), filename_prefix=f"latent-{name}")
    finished = await run(local, graph.nodes)
    assert finished.end["type"] == "execution_success", finished.end
    latents = {name: latent(local, name) for name in ("first", "again", "inpainted")}
    assert not torch.allclose(latents["again"], latents["first"], rtol=0.1)
    columns = latents["first"].shape[-1] // 2
    difference = latents["inpainted"] - latents["first"]
    kept, changed = difference[..., :columns], difference[..., columns:]
    scale = latents["first"].abs().max()
    assert kept.abs().max() <= 1e-6 * scale
    assert changed.abs().max() > 0.1 * scale


def latent(local, name):
    return load_file(local.base / "output" / f"latent-{name}_00001_.latent")["latent_tensor"]


async def test_an_uploaded_image_is_changed_where_its_mask_says(local):
    """As Load Image gives both: transparent is where it may change."""
    drawn = Image.new("RGBA", (SIZE, SIZE), (230, 180, 60, 255))
    drawn.paste((230, 180, 60, 0), (SIZE // 2, 0, SIZE, SIZE))
    graph = Graph()
    loaded = graph.load()
    image = graph.add("LoadImage", image=local.upload(drawn, "masked.png"))
    latent_in = graph.add("HidreamEncodeImage", hidream=(loaded, 0), image=(image, 0), mask=(image, 1))
    own = {"width": 0, "height": 0, "latent": (latent_in, 0), "seed": 71}
    graph.save(graph.sample(loaded, graph.encode(loaded), **own))
    shown = await pixels_of(local, graph.nodes)
    assert shown.shape == (SIZE, SIZE, 3)
    apart = np.abs(shown.astype(float) - (230, 180, 60)).mean((0, 2))
    assert apart[: SIZE // 2 - 16].mean() < 5, "the autoencoder's own error"
    assert apart[SIZE // 2 + 16 :].mean() > 10, "a fox"


async def test_a_batch_of_latents_gives_as_many_images(local, library):
    graph = Graph()
    loaded = graph.load()
    empty = graph.add("EmptySD3LatentImage", width=SIZE // 2, height=SIZE // 2, batch_size=2)
    sampled = graph.sample(loaded, graph.encode(loaded), latent=(empty, 0), steps=4)
    graph.save(sampled, filename_prefix="batch")
    finished = await run(local, graph.nodes)
    assert finished.end["type"] == "execution_success", finished.end
    for seed, image in zip((7, 8), finished.images, strict=True):
        expected = library("dev")(PROMPT, seed=seed, size=(SIZE, SIZE), num_inference_steps=4)
        assert np.array_equal(np.asarray(local.image(image)), expected.pixels)


async def test_progress_and_previews_arrive(local):
    finished = await run(local, text_to_image(previews=True, seed=21))
    assert finished.progress("3")[-1] == (28, 28)
    assert len(finished.previews) >= 20
    node, preview = finished.previews[-1]
    image = Image.open(io.BytesIO(preview))
    assert node == "3"
    assert image.format == "JPEG"


async def test_an_interruption_takes_effect_within_a_step(local, record_property):
    asked = []

    def interrupt(run, message):
        if message["type"] == "progress" and message["data"]["value"] == 3 and not asked:
            local.interrupt(run.prompt_id)
            asked.append(time.monotonic())

    finished = await run(local, text_to_image(seed=22, steps=200, width=1024, height=1024, render="native"), interrupt)
    assert finished.end["type"] == "execution_interrupted"
    (value, _) = finished.progress("3")[-1]
    record_property("interrupted_after_s", round(finished.at_s[-1] - asked[0], 3))
    assert value <= 5
    assert (await run(local, text_to_image(steps=4))).end["type"] == "execution_success"


async def test_the_warning_about_a_long_prompt_is_shown_in_the_node(local):
    finished = await run(local, text_to_image(prompt=f"{PROMPT} and more " * 20, steps=1, seed=23))
    shown = [text for node, text in finished.texts if node == "2"]
    assert any("the prompt is too long for" in text for text in shown)
    outputs = [each["data"]["output"] for each in finished.messages if each["type"] == "executed"]
    assert any("the prompt is too long for" in text for output in outputs for text in (output or {}).get("text", []))


async def test_a_second_run_reuses_the_model_and_the_prompt(local):
    await run(local, text_to_image(seed=31, steps=2))
    before = local.log.read_text().count(LOG_LOADS)
    again = await run(local, text_to_image(seed=32, steps=2))
    (cached,) = [each["data"]["nodes"] for each in again.messages if each["type"] == "execution_cached"]
    assert set(cached) >= {"1", "2"}
    assert local.log.read_text().count(LOG_LOADS) == before


async def test_unload_models_frees_it_and_it_comes_back(local, record_property):
    workflow = text_to_image(seed=33, steps=2)
    first = await pixels_of(local, workflow)
    held = local.memory_bytes()
    local.unload()
    deadline = time.monotonic() + 30
    while local.memory_bytes() > held - 20e6:
        assert time.monotonic() < deadline, f"{local.memory_bytes() / 1e6:.0f} of {held / 1e6:.0f} MB are held"
        await asyncio.sleep(0.2)
    record_property("held_mb", round(held / 1e6))
    record_property("unloaded_mb", round(local.memory_bytes() / 1e6))
    assert np.array_equal(await pixels_of(local, workflow), first)


async def test_another_model_may_have_the_memory_meanwhile(local):
    graph = Graph()
    loaded = graph.load()
    positive = graph.encode(loaded)
    first = graph.sample(loaded, positive, steps=2, seed=34)
    native = graph.add("NanoNative", variant="fast")
    sampled = graph.add(
        "KSampler", model=(native, 0), positive=(positive, 0), negative=(positive, 0), latent_image=(first, 0), seed=7,
        steps=2, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=0.5,
    )  # fmt: skip
    second = graph.sample(loaded, positive, latent=(sampled, 0), steps=4, strength=0.5)
    graph.save(second)
    assert (await run(local, graph.nodes)).end["type"] == "execution_success"


async def test_the_file_has_seed_version_and_workflow(local):
    workflow = text_to_image(seed=41, steps=2)
    described = {"extra_pnginfo": {"workflow": {"nodes": [], "version": 0.4}}}
    finished = await run(local, workflow, **described)
    image = local.image(finished.images[0])
    assert image.text["seed"] == "41"
    assert image.text["version"].startswith("hidream-i1-dev/")
    assert json.loads(image.text["prompt"])["1"]["class_type"] == "HidreamLoad"
    assert json.loads(image.text["workflow"]) == described["extra_pnginfo"]["workflow"]
    for node in workflow.values():
        if node["class_type"] == "HidreamSave":
            node["inputs"]["file_format"] = "webp"
    exif = local.image((await run(local, workflow, **described)).images[0]).getexif()
    assert exif[0x0110].startswith("prompt:{")
    assert exif[0x010F].startswith("workflow:{")
    assert '"seed": "41"' in exif.get_ifd(0x8769)[0x9286].decode()


async def refusal(local, workflow):
    """What ComfyUI says of a workflow, before it runs or when a node ran into it."""
    from running_comfyui import Refused

    try:
        finished = await run(local, workflow)
    except Refused as refused:
        return json.dumps(refused.said)
    return finished.error


async def test_missing_and_broken_files_are_named(local):
    models = local.base / "models"
    said = await refusal(local, text_to_image("gone.safetensors"))
    assert "gone.safetensors" in said
    assert str(models / "diffusion_models") in said
    (models / "diffusion_models" / "torn-dev.safetensors").write_bytes(b"torn")
    said = await refusal(local, text_to_image("torn-dev.safetensors"))
    assert "torn-dev.safetensors" in said
    (models / "diffusion_models" / "torn-dev.safetensors").unlink()
    llama = next((models / "text_encoders").glob("*llama*"))
    llama.rename(models / "llama.away")
    try:
        said = await refusal(local, text_to_image(seed=51))
    finally:
        (models / "llama.away").rename(llama)
    assert "llama_3.1_8b_instruct" in said
    assert str(models / "text_encoders") in said
    said = await refusal(local, text_to_image(chosen={"vae": llama.name}))
    assert "vae" in said
    assert llama.name in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strength": 0.5}, "strength is 0.5, and no latent is connected"),
        ({"guidance": 5.0}, "guidance_scale is 5"),
        ({"width": 0}, "width or height is 0"),
    ],
)
async def test_what_cannot_be_used_is_refused(local, settings, words):
    assert words in await refusal(local, text_to_image(**settings))


async def test_prompts_are_checked(local):
    assert "refused" in await refusal(local, text_to_image(prompt="a naked child"))


async def test_two_prompts_queued_both_end(local):
    async with local.client() as front_end:
        first = await front_end.queue(text_to_image(seed=61, steps=4))
        second = await front_end.queue(text_to_image(seed=62, steps=4))
        ends = [(await front_end.wait(each)).end["type"] for each in (first, second)]
    assert ends == ["execution_success"] * 2
