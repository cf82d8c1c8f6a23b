"""The autoencoder: encoding and decoding, the scale of latents, layout and tiles, for both classes of checkpoints.

Our networks equal those of diffusers bit for bit: the operations and their order are the same.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import diffusers
import pytest
import tiny
import torch

from hidream.errors import CheckpointError
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded
from hidream.model.latents import autoencoder_dc
from hidream.model.latents.autoencoder import CLASSES, Autoencoder, load_autoencoder
from hidream.model.latents.autoencoder_dc import AutoencoderDC
from hidream.model.memory.candidates import TILE_PX
from hidream.model.pipeline import generate
from hidream.parts import VAE
from hidream.request import ImageRequest
from hidream.types import Size, Variant

CPU = torch.device("cpu")
EVERY_LAYER = {  # of AutoencoderKL: shortcuts with a convolution, and the convolutions that FLUX's lacks
    "block_out_channels": (8, 16, 16, 24),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "latent_channels": 16,
}
FULL_SIZE = {  # of AutoencoderDC: layers at full size, and shortcuts around the latent, which nano's has not
    "latent_channels": 4,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (8, 16, 16),
    "decoder_block_out_channels": (8, 16, 16),
    "encoder_layers_per_block": (1, 2, 1),
    "decoder_layers_per_block": (1, 2, 1),
    "encoder_qkv_multiscales": ((),) * 3,
    "decoder_qkv_multiscales": ((),) * 3,
}


SMALL_KL = {"block_out_channels": (8, 16), "norm_num_groups": 4}
SMALL_DC = {
    "latent_channels": 4,
    "encoder_block_out_channels": (8, 16),
    "decoder_block_out_channels": (8, 16),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
}


def kl(seed: int = 0) -> Autoencoder:
    """A tiny autoencoder of FLUX's class, random."""
    torch.manual_seed(seed)
    return Autoencoder(tiny.our_autoencoder_kl(), factor=8, scaling=0.3611, shift=0.1159)


def lies_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def nano_config() -> dict[str, Any]:
    return json.loads((embedded(Variant.DEV).part("vae") / "config.json").read_text())


def both(name: str, config: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Autoencoder]:
    """Diffusers' network and ours with the same random weights, each of which matters."""
    theirs = getattr(diffusers, name).from_config(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    network, config_kind = CLASSES[name]
    known = {field.name for field in dataclasses.fields(config_kind)}
    module = network(config_kind(**{key: value for key, value in config.items() if key in known}))
    module.load_state_dict(theirs.state_dict())
    levels = config.get("block_out_channels") or config["encoder_block_out_channels"]
    ours = Autoencoder(module.to(dtype).eval().requires_grad_(False), 2 ** (len(levels) - 1), scaling=1.0, shift=0.0)
    return theirs.to(dtype), ours


def cut(theirs: Any, side_px: int, factor: int) -> None:
    """Have diffusers' network compute in tiles."""
    if isinstance(theirs, diffusers.AutoencoderKL):
        theirs.tile_sample_min_size, theirs.tile_latent_min_size = side_px, side_px // factor
        theirs.enable_tiling()
    else:
        theirs.enable_tiling(side_px, side_px, side_px * 3 // 4, side_px * 3 // 4)


def small(name: str, device: str) -> Autoencoder:
    """One of ours with two levels and random weights."""
    network, config_kind = CLASSES[name]
    config = SMALL_KL if name == "AutoencoderKL" else SMALL_DC
    with torch.device(device):
        return Autoencoder(network(config_kind(**config)).requires_grad_(False), factor=2, scaling=1.0, shift=0.0)


def encoded_by(theirs: Any, image: torch.Tensor) -> torch.Tensor:
    encoded = theirs.encode(image)
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent


@pytest.mark.slow
def test_there_and_back_is_nearly_the_same_image(dev):
    pixels = torch.from_numpy(generate(dev, ImageRequest("flat style a fox in the snow", Size(256, 256), 7)).pixels)
    image = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    latent = dev.vae.encode(image)
    assert latent.shape == (1, 16, 16, 16)
    assert 0.5 < float(latent.std()) < 2  # the scale that the transformer was trained with
    assert float((dev.vae.decode(latent) - image).abs().mean()) < 0.05


@pytest.mark.parametrize("name", CLASSES)
def test_equals_diffusers_in_the_references_convention(tmp_path, name):
    torch.manual_seed(0)
    is_kl = name == "AutoencoderKL"
    config = EVERY_LAYER | {"scaling_factor": 0.3611, "shift_factor": 0.1159} if is_kl else nano_config()
    module, scaling, shift = getattr(diffusers, name).from_config(config), config["scaling_factor"], 0.1159 * is_kl
    module.eval().save_pretrained(tmp_path / "vae")
    ours = load_autoencoder(Checkpoint(tmp_path), CPU, torch.float32)
    latent = torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        image = module.decode(latent / scaling + shift).sample
        torch.testing.assert_close(ours.decode(latent), image)
        torch.testing.assert_close(ours.encode(image), (encoded_by(module, image) - shift) * scaling)
    assert ours.factor == image.shape[-1] // 6


NETWORKS = pytest.mark.parametrize(
    ("name", "config"),
    [("AutoencoderKL", EVERY_LAYER), ("AutoencoderDC", nano_config()), ("AutoencoderDC", FULL_SIZE)],
    ids=["flux", "nano", "full-size"],
)


@pytest.mark.parametrize("cells", [(4, 6), (14, 9)], ids=["whole", "cut"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@NETWORKS
def test_equals_diffusers_bit_for_bit(name, config, dtype, cells):
    check_equal(name, config, dtype, cells)


@NETWORKS
def test_a_last_tile_narrower_than_the_overlap_equals_diffusers(name, config):
    """In float32: a bfloat16 convolution of stride 2 to a single column differs from call to call (CPU, torch 2.13)."""
    check_equal(name, config, torch.float32, (13, 7))


def check_equal(name: str, config: dict[str, Any], dtype: torch.dtype, cells: tuple[int, int]) -> None:
    """Encode and decode with both, in tiles of 8 cells, what is larger than that, in both layouts."""
    theirs, ours = both(name, config, dtype)
    ours = dataclasses.replace(ours, tile_px=8 * ours.factor)
    cut(theirs, 8 * ours.factor, ours.factor)
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, config["latent_channels"], *cells, generator=generator)
    image = torch.randn(1, 3, *(side * ours.factor for side in cells), generator=generator)
    for layout in (torch.contiguous_format, torch.channels_last):
        latent, image = latent.to(dtype, memory_format=layout), image.to(dtype, memory_format=layout)
        with torch.inference_mode():
            assert torch.equal(ours.decode(latent), theirs.decode(latent).sample)
            assert torch.equal(ours.encode(image), encoded_by(theirs, image))


@pytest.mark.parametrize("name", CLASSES)
def test_compiles_to_one_graph(name):
    module = small(name, "cpu").module
    latent, image = torch.randn(1, 4, 4, 6), torch.randn(1, 3, 8, 12)
    compiled = torch.compile(lambda x, y: (module.decode(x), module.encode(y)), fullgraph=True, backend="eager")
    decoded, encoded = compiled(latent, image)
    assert torch.equal(decoded, module.decode(latent))
    assert torch.equal(encoded, module.encode(image))


@pytest.mark.parametrize("name", CLASSES)
def test_no_value_is_read_while_it_computes(name):
    """Neither whole nor in tiles: on the meta device there are no values."""
    ours = small(name, "meta")
    for each in (ours, dataclasses.replace(ours, tile_px=16)):
        assert each.decode(torch.empty(1, 4, 12, 9, device="meta")).shape == (1, 3, 24, 18)
        assert each.encode(torch.empty(1, 3, 24, 18, device="meta")).shape == (1, 4, 12, 9)


@pytest.mark.parametrize("name", CLASSES)
def test_channels_last_differ_by_rounding_only(dev, name):
    ours = dev.vae if name == "AutoencoderDC" else dataclasses.replace(kl(), channels_last=True)
    plain = dataclasses.replace(ours, channels_last=False)
    latent = torch.randn(1, 16, 12, 20, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        image, expected = ours.decode(latent), plain.decode(latent)
        assert lies_last(image)
        assert expected.is_contiguous()
        assert tiny.relative(image, expected) <= 1e-5
        encoded = ours.encode(expected)
        assert encoded.is_contiguous()  # what the sampler gets is laid out as ever
        assert tiny.relative(encoded, plain.encode(expected)) <= 1e-5


def test_channels_last_are_not_for_group_norm(tmp_path, dev):
    diffusers.AutoencoderKL.from_config(EVERY_LAYER).save_pretrained(tmp_path / "vae")
    assert not load_autoencoder(Checkpoint(tmp_path), CPU, torch.float32).channels_last
    assert dev.vae.channels_last


def test_another_device_keeps_the_layout_it_gets():
    assert (
        dataclasses.replace(kl(), channels_last=True)
        ._in_memory_format(torch.empty(1, 16, 8, 8, device="meta"))
        .is_contiguous()
    )


def test_tiles_of_the_planned_side_give_nearly_the_same_image():
    ours, cells, kept = kl(), TILE_PX // 8, TILE_PX * 3 // 4
    latent = torch.randn(1, 16, 80, 72, generator=torch.Generator().manual_seed(1))
    whole, first = ours.decode(latent), ours.decode(latent[..., :cells, :cells])
    ours = dataclasses.replace(ours, tile_px=TILE_PX)
    tiled = ours.decode(latent)
    assert torch.equal(tiled[..., :kept, :kept], first[..., :kept, :kept])  # a tile is decoded as if it were all
    # random weights and latents make the most of what group norm sees of each tile; 0.019 to 0.037 were measured
    assert 0 < (tiled - whole).abs().mean() / whole.std() < 0.05
    small = latent[..., :cells, :cells]
    assert torch.equal(ours.decode(small), first)  # what fits into a tile is not cut


def test_each_class_that_is_read_has_a_network():
    assert tuple(CLASSES) == VAE.classes


@pytest.mark.parametrize("name", ["UNet2DModel", "AutoencoderTiny"])
def test_another_class_is_named(tmp_path, name):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(CheckpointError, match=f"{name}'; accepted: AutoencoderKL or AutoencoderDC"):
        load_autoencoder(Checkpoint(tmp_path), CPU, torch.float32)


@pytest.mark.parametrize(
    ("name", "field", "value", "accepted"),
    [
        ("AutoencoderKL", "act_fn", "gelu", "silu"),
        ("AutoencoderKL", "down_block_types", ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"], "DownEncoderB"),
        ("AutoencoderDC", "encoder_block_types", ["ResBlock"] * 4 + ["EfficientViTBlock"], "ResBlock"),
        ("AutoencoderDC", "decoder_norm_types", "batch_norm", "rms_norm"),
        ("AutoencoderDC", "upsample_block_type", "interpolate", "pixel_shuffle"),
        ("AutoencoderDC", "decoder_conv_act_fn", "mish", "relu or silu"),
    ],
)
def test_a_layer_of_another_kind_is_named(tmp_path, name, field, value, accepted):
    config = EVERY_LAYER if name == "AutoencoderKL" else nano_config()
    getattr(diffusers, name).from_config(config).save_pretrained(tmp_path / "vae")
    stated = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(stated | {field: value}))
    with pytest.raises(
        CheckpointError, match=rf"it has {field} = '{value if isinstance(value, str) else value[-1]}'; .*{accepted}"
    ):
        load_autoencoder(Checkpoint(tmp_path), CPU, torch.float32)


def test_widths_that_cannot_be_folded_are_refused():
    with pytest.raises(ValueError, match="250 channels; accepted: a multiple of 4"):
        AutoencoderDC(
            dataclasses.replace(autoencoder_dc.Config(), encoder_block_out_channels=(128, 250, 512, 512, 1024, 1024))
        )


@pytest.mark.integration
def test_generating_does_not_import_diffusers():
    """It takes seconds."""
    code = (
        "import sys, hidream; hidream.Pipeline.from_pretrained()('a fox', size='256x256', num_inference_steps=1);"
        "print('diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
