"""float16: images are unchanged, and one that would be black is a failed task that says why."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from service import Service


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    (folder / "loras").mkdir()
    layer = "transformer.double_stream_blocks.0.block.attn1.to_out"
    large = {f"{layer}.lora_A.weight": torch.full((2, 192), 1e4), f"{layer}.lora_B.weight": torch.full((192, 2), 1e4)}
    save_file(large, folder / "loras" / "glare.safetensors")
    service = Service(
        folder / "home",
        HIDREAM_COMPUTE_DTYPE="float16",
        HIDREAM_MODELS_LORAS=str(folder / "loras"),
        HIDREAM_WORKER_SERVES="dev",
    )
    service.wait_until_ready()
    yield service
    assert service.stop() == 0


def test_float16_draws(half):
    data, file = half.draw(size="256*256", seed=7, num_inference_steps=4)
    assert "float16" in data["version"]
    assert np.asarray(Image.open(io.BytesIO(file))).std() > 20


def test_what_would_be_black_fails_and_says_why(half):
    data = half.result(half.submit(size="256*256", seed=7, num_inference_steps=2, loras=[{"name": "glare"}]))
    assert (data["status"], data["code"], data["outputs"]) == ("failed", 1403, [])
    assert "computed in float16; with the LoRAs glare (weight 1); float16 ends at 65,504" in data["error"]
