"""A custom node for the tests: gives nano, the model inside hidream, as a native MODEL of ComfyUI.

ComfyUI's loader knows the published size only, so its own model class is built from nano's configuration.
"""

import json

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_api.v0_0_2 import ComfyExtension, io

from hidream.model.checkpoint.checkpoint import NANO, embedded
from hidream.types import Variant

VAE = json.loads((NANO / "dev" / "vae" / "config.json").read_text())


class NanoLatent(comfy.latent_formats.LatentFormat):
    latent_channels = 16
    scale_factor = VAE["scaling_factor"]

    def process_in(self, latent):
        return latent * self.scale_factor

    def process_out(self, latent):
        return latent / self.scale_factor


def native(variant="dev", dtype=torch.float32, compute=None):
    """A ModelPatcher of nano, stored in `dtype` and computed in `compute`, or as stored."""
    checkpoint = embedded(Variant(variant))
    return built(checkpoint.config("transformer"), checkpoint.read("transformer").tensors, dtype, compute)


def built(numbers, state, dtype=torch.float32, compute=None):
    """A ModelPatcher of a transformer with these numbers and weights."""
    unet = {key: value for key, value in numbers.items() if not key.startswith("_")} | {"image_model": "hidream"}
    config = comfy.supported_models.HiDream(unet)
    config.latent_format = NanoLatent()
    config.set_inference_dtype(dtype, compute)
    model = comfy.model_base.HiDream(config, device=torch.device("cpu"))
    model.diffusion_model.load_state_dict({key: value.to(dtype) for key, value in state.items()})
    model.eval()
    return comfy.model_patcher.ModelPatcher(
        model, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    )


class NanoNative(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        variant = io.Combo.Input("variant", options=["dev", "full", "fast"])
        return io.Schema("NanoNative", category="test", inputs=[variant], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, variant):
        return io.NodeOutput(native(variant))


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [NanoNative]


async def comfy_entrypoint():
    return Extension()
