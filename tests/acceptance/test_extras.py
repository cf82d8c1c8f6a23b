"""Parameters that v3 has beyond the documents, over HTTP: the library generates the same image for the same request."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file

from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Conformance, Mode, Render, Sampler, Size

LAYER = "double_stream_blocks.0.block.attn1.to_q"
LONG = "a red apple and a blue house " * 60
BODY = {"size": "256*256", "seed": 7, "output_format": "png", "num_inference_steps": 2}


def pixels_of(file):
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


@pytest.mark.parametrize(
    ("body", "same"),
    [
        ({}, {}),
        ({"mode": "turbo", "num_inference_steps": 8}, {"mode": Mode.TURBO, "steps": 8}),
        (
            {"shift": 2.0, "sampler": "euler", "conformance": "official", "render": "reference", "size": "384*256"},
            {
                "shift": 2.0,
                "sampler": Sampler.EULER,
                "conformance": Conformance.OFFICIAL,
                "render": Render.REFERENCE,
                "size": Size(384, 256),
            },
        ),
    ],
)
def test_the_image_and_its_warnings_are_the_librarys(service, library, body, same):
    data, file = service.draw(prompt=LONG, **BODY | body)
    request = ImageRequest(**{"prompt": LONG, "size": Size(256, 256), "seed": 7, "steps": 2} | same)
    expected = generate(library, request)
    assert data["version"] == library.version_of(request.mode)
    assert np.array_equal(pixels_of(file), expected.pixels)
    assert data["warnings"] == list(expected.warnings)
    assert "the prompt is too long for" in data["warnings"][0]


def test_it_changes_the_image_and_nothing_is_said_without_need(service):
    plain, first = service.draw(**BODY)
    _, other = service.draw(**BODY | {"sampler": "euler"})
    assert first != other
    assert "warnings" not in plain


def test_what_dev_passes_over_changes_nothing(service):
    _, plain = service.draw(**BODY)
    _, same = service.draw(**BODY, guidance_scale=3.5, negative_prompt="fog", loras=[], sampler="", num_images=1)
    assert plain == same


def test_a_lora_that_is_not_there_is_a_failed_task_that_names_it(service):
    data = service.result(service.submit(**BODY, loras=[{"path": "acme/ink", "scale": 1}]))
    assert (data["status"], data["code"], data["outputs"]) == ("failed", 1401, [])
    assert data["error"].startswith("loras names 'acme/ink'; accepted: ")


def test_loras_come_and_go_while_the_server_runs(service, loras):
    (loras / "flux.safetensors").write_bytes(foreign := save(pair("lora_unet_double_blocks_0_img_attn_qkv", 3072)))
    failed = service.result(service.submit(**BODY, loras=[{"name": "flux"}]))
    assert (failed["status"], failed["code"]) == ("failed", 1401)
    assert failed["error"].startswith("loras names 'flux', which cannot be used: the LoRA flux matches no layer of")
    assert str(loras) not in failed["error"]
    save_file(pair(LAYER, 192) | pair("blocks.0.attn", 192), loras / "ink.safetensors")
    inked, file = service.draw(**BODY, loras=[{"name": "ink"}])
    left_out = "1 of its 2 layers are not in this model (blocks.0.attn)"
    assert inked["warnings"] == [f"the LoRA ink is used in part: {left_out}"]
    _, plain = service.draw(**BODY)
    assert plain != file
    (loras / "ink.safetensors").write_bytes(foreign)
    assert service.result(service.submit(**BODY, loras=[{"name": "ink"}]))["status"] == "failed"
    assert "lora_unusable name=flux reason=the LoRA flux matches no layer" in service.log.read_text()


def pair(layer, width):
    g = torch.Generator().manual_seed(0)
    return {f"{layer}.lora_down.weight": torch.randn(2, width, generator=g),
            f"{layer}.lora_up.weight": torch.randn(width, 2, generator=g)}  # fmt: skip


def test_a_bad_value_is_a_400_that_names_it(service):
    answer = service.http.post("/api/v3/wavespeed-ai/hidream-i1-dev", json={"prompt": "a house", "sampler": "dpm"})
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert answer.json()["message"] == "sampler is 'dpm'; accepted: flash, unipc, euler"
