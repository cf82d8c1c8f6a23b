"""The logic of the local nodes without a ComfyUI: what they read, what they refuse, and that the image is the same."""

import loaded_nodes
import numpy as np
import pytest
import torch

import hidream
from hidream.errors import InvalidInput, PromptRefused
from hidream.model.latents.preview import fit_preview
from hidream.model.loading import load
from hidream.types import Variant

SETTINGS = {
    "width": 256,
    "height": 256,
    "seed": 7,
    "steps": 4,
    "guidance": -1.0,
    "shift": 0.0,
    "strength": 1.0,
    "sampler": "preset",
    "mode": "exact",
    "render": "best",
    "previews": True,
}
PROMPT = "a red circle"


class Loaded:
    """A model that stays loaded; in ComfyUI, `model.LocalModel` loads it when ComfyUI has made room."""

    def __init__(self, variant):
        self.model = load(variant, device="cpu")

    def load(self):
        return self.model

    def preview(self):
        return fit_preview(self.model.vae)

    def lora(self, file):
        raise AssertionError(f"no LoRA is used here: {file}")


@pytest.fixture(scope="module")
def dev():
    return Loaded(Variant.DEV)


@pytest.fixture(scope="module")
def full():
    return Loaded(Variant.FULL)


def encoded(model, prompt=PROMPT, **own):
    node = loaded_nodes.module("local.encode").EncodeHiDream.prepared("5")
    return node.execute(model, prompt, True, **own)


def sampled(model, positive, **given):
    node = loaded_nodes.module("local.sample").SampleHiDream
    return node.execute(hidream=model, positive=positive, **SETTINGS | given).args


def pixels_of(image):
    return image.mul(255).round().byte().numpy()


def test_the_image_is_the_librarys_and_progress_is_told(standin, dev):
    (positive,) = encoded(dev).args
    latent, images, (details,) = sampled(dev, positive)
    expected = hidream.Pipeline(dev.model)(PROMPT, seed=7, size=(256, 256), num_inference_steps=4)
    assert np.array_equal(pixels_of(images[0]), expected.pixels)
    assert (details.seed, details.version) == (7, expected.version)
    assert standin.progress == [(i, 4) for i in range(1, 5)]
    assert [(kind, image.size) for kind, image, _ in standin.previews] == [("JPEG", (16, 16))] * 4
    assert latent["samples"].shape == (1, 16, 16, 16)


def test_guidance_takes_an_empty_negative_prompt_unless_there_is_one(standin, full):
    positive, negative = encoded(full).args[0], encoded(full, "blue").args[0]
    pipeline = hidream.Pipeline(full.model)
    for given, text in (({}, ""), ({"negative": negative}, "blue")):
        _, images, _ = sampled(full, positive, **given)
        options = {"seed": 7, "size": (256, 256), "num_inference_steps": 4, "negative_prompt": text}
        assert np.array_equal(pixels_of(images[0]), pipeline(PROMPT, **options).pixels)


def test_conditioning_has_the_layout_of_comfyuis_own(standin, dev):
    ((t5, rest),) = encoded(dev).args[0]
    tokens = dev.model.text.tokens
    assert t5.shape == (1, tokens, 192)
    assert rest["pooled_output"].shape == (1, 192)
    assert rest["conditioning_llama3"].shape == (1, 4, tokens, 192)


def test_a_long_prompt_is_told_of_in_the_node(standin, dev):
    output = encoded(dev, f"{PROMPT} and so on " * 20)
    ((node, text),) = standin.texts
    assert node == "5"
    assert "the prompt is too long for" in text
    assert output.ui == {"text": (text,)}
    assert encoded(dev).ui is None


def test_prompts_are_checked_each_encoders_too(standin, dev):
    with pytest.raises(PromptRefused):
        encoded(dev, "a naked child")
    with pytest.raises(PromptRefused):
        encoded(dev, llama="a naked child")


def test_an_interruption_ends_it_at_the_next_step(standin, dev):
    from comfy.model_management import InterruptProcessingException

    (positive,) = encoded(dev).args
    standin.interruption.set()
    with pytest.raises(InterruptProcessingException):
        sampled(dev, positive)
    assert not standin.progress


def test_a_latent_is_started_from_and_gives_its_size(standin, dev):
    (positive,) = encoded(dev).args
    first, _, _ = sampled(dev, positive)
    again, images, _ = sampled(dev, positive, latent=first, strength=0.01, width=0, height=0)
    assert images.shape == (1, 256, 256, 3)
    difference = (again["samples"] - first["samples"]).abs().mean()
    assert 0 < difference < 0.5 * first["samples"].abs().mean()


def test_a_noise_mask_keeps_what_is_outside(standin, dev):
    (positive,) = encoded(dev).args
    first, _, _ = sampled(dev, positive)
    mask = torch.zeros(1, 256, 256)
    mask[:, 128:] = 1
    again, _, _ = sampled(dev, positive, latent=first | {"noise_mask": mask}, seed=8)
    torch.testing.assert_close(again["samples"][:, :, :8], first["samples"][:, :, :8], rtol=1e-6, atol=1e-3)
    assert not torch.allclose(again["samples"][:, :, 8:], first["samples"][:, :, 8:], rtol=0.1)


def test_an_image_becomes_a_latent_and_comes_back(standin, dev):
    images = loaded_nodes.module("local.images")
    drawn = torch.zeros(2, 70, 100, 3)
    drawn[:, 20:, :, 0] = 1
    mask = torch.zeros(2, 70, 100)
    mask[:, :, 50:] = 1
    (latent,) = images.EncodeImageHiDream.execute(dev, drawn, mask).args
    assert latent["samples"].shape == (2, 16, 4, 6)
    assert latent["noise_mask"].shape == (2, 64, 96)
    (shown,) = images.DecodeHiDream.execute(dev, latent, 0).args
    assert (shown - drawn[:, 3:67, 2:98]).abs().mean() < 0.05
    (latent,) = images.EncodeImageHiDream.execute(dev, drawn).args
    assert "noise_mask" not in latent
    with pytest.raises(InvalidInput, match="mask has 100x70 pixels, and the image 100x64; accepted: the same size"):
        images.EncodeImageHiDream.execute(dev, drawn[:, 6:], mask)
    with pytest.raises(InvalidInput, match="image has 100x31 pixels; accepted: 32 or more a side"):
        images.EncodeImageHiDream.execute(dev, drawn[:, :31])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"strength": 0.5}, "strength is 0.5, and no latent is connected; accepted: 1, or a latent"),
        ({"height": 0}, "width or height is 0, and no latent is connected"),
        ({"latent": {"samples": torch.zeros(1, 4, 32, 32)}}, r"latent has the shape \[1, 4, 32, 32\]; accepted"),
        ({"latent": {"samples": torch.zeros(1, 16, 16, 32)}}, "is 256x256, and the latent is one of 512x256 pixels"),
        ({"guidance": 4.0}, "guidance_scale is 4, and hidream-i1-dev was distilled to do without guidance"),
        ({"negative": "the positive"}, "negative_prompt is 'a red circle', and hidream-i1-dev was distilled"),
        ({"steps": 201}, "num_inference_steps is 201; accepted"),
    ],
)  # fmt: skip
def test_what_is_not_used_is_refused(standin, dev, given, words):
    (positive,) = encoded(dev).args
    given = {name: positive if value == "the positive" else value for name, value in given.items()}
    with pytest.raises(InvalidInput, match=words):
        sampled(dev, positive, **given)


def test_a_negative_prompt_without_guidance_is_refused(standin, full):
    positive, negative = encoded(full).args[0], encoded(full, "blue").args[0]
    with pytest.raises(InvalidInput, match="negative is connected, and without guidance above 1 it is not used"):
        sampled(full, positive, negative=negative, guidance=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: [one, one], "positive combines 2 prompts"),
        (lambda one: [[one[0], {"pooled_output": one[1]["pooled_output"]}]], "positive is of another model"),
        (lambda one: [[one[0], one[1] | {"area": (1, 1, 0, 0)}]], "positive has area, which this sampler does not use"),
    ],
)
def test_conditioning_that_is_not_one_prompt_of_ours_is_refused(standin, dev, change, words):
    (positive,) = encoded(dev).args
    with pytest.raises(InvalidInput, match=words):
        sampled(dev, change(positive[0]))


def test_files_are_offered_by_their_names_in_all_folders(standin, tmp_path):
    for name in (
        "a/unet/dev.safetensors",
        "b/more/dev_q8.gguf",
        "b/notes.txt",
        "b/dev.ckpt",
        "c/mine/model_index.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "round").symlink_to(tmp_path / "b")
    standin.folders = {
        "diffusion_models": [tmp_path / "a", tmp_path / "b", tmp_path / "gone"],
        "diffusers": [tmp_path / "c"],
    }
    files = loaded_nodes.module("local.files")
    assert files.models() == ["more/dev_q8.gguf", "unet/dev.safetensors", "diffusers/mine", files.NANO]
    assert files.path_of("model", "more/dev_q8.gguf") == tmp_path / "b" / "more" / "dev_q8.gguf"
    assert files.path_of("model", "diffusers/mine") == tmp_path / "c" / "mine"
    with pytest.raises(
        InvalidInput, match=f"model names 'dev.safetensors', which is not there; .* {tmp_path / 'a'} or"
    ):
        files.path_of("model", "dev.safetensors")


def test_a_stack_of_loras_follows_the_one_before(standin, tmp_path):
    (tmp_path / "ink.safetensors").touch()
    standin.folders = {"loras": [tmp_path]}
    node = loaded_nodes.module("local.loras").LoraStackHiDream
    slots = {f"lora_{i}": "none" for i in range(1, 5)} | {f"weight_{i}": 1.0 for i in range(1, 5)}
    before = ((tmp_path / "other.safetensors", 0.5),)
    (stack,) = node.execute(before, **slots | {"lora_3": "ink.safetensors", "weight_3": -0.25}).args
    assert stack == (*before, (tmp_path / "ink.safetensors", -0.25))
    with pytest.raises(InvalidInput, match=f"lora names 'gone.safetensors', which is not there; .* {tmp_path}"):
        node.execute(**slots | {"lora_1": "gone.safetensors"})


def test_every_node_describes_itself(standin):
    standin.folders = {kind: [] for kind in ("diffusion_models", "diffusers", "text_encoders", "vae", "loras")}
    names = set()
    for name in ("accelerate", "encode", "images", "load", "loras", "sample"):
        module = loaded_nodes.module(f"local.{name}")
        for value in vars(module).values():
            if isinstance(value, type) and "define_schema" in vars(value):
                schema = value.define_schema()
                names.add(schema.node_id)
                ids = [each.id for each in schema.inputs]
                assert len(set(ids)) == len(ids)
    assert len(names) == 8
