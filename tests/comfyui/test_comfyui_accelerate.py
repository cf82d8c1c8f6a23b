"""Accelerate HiDream in this process, on ComfyUI's own modules: equal to the native forward pass, whatever the weights.

Runs nano, whose model class is built from its configuration (`nano_native`). How much faster it is:
benchmarks/comfyui_nodes.py.
"""

import importlib
import sys

import loaded_nodes
import pytest
import torch

TOLERANCE = 1e-4
"""Of the largest value of the output: what sums in another order differ by, and no more."""
TEXT_TOKENS = 20


@pytest.fixture(scope="module")
def nano(comfyui_checkout):
    """The custom node that builds nano, with ComfyUI's packages importable as its main.py has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(comfyui_checkout))
        patch.setattr(sys, "argv", ["main.py", "--cpu"])
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.sample")
        loaded_nodes.load(patch)
        yield importlib.import_module("nano_native")


def accelerated(model, mode="exact"):
    return loaded_nodes.module("local.accelerate").accelerated(model, mode)


def conditioning(seed):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    rest = {"pooled_output": noise(1, 192), "conditioning_llama3": noise(1, 4, TEXT_TOKENS, 192)}
    return [[noise(1, TEXT_TOKENS, 192), rest]]


def of_a_prompt():
    from hidream.model.loading import load
    from hidream.types import Variant

    embeds = load(Variant.DEV, device="cpu").text.embed(["a red circle on a white background"]).embeds
    return [[embeds.t5, {"pooled_output": embeds.pooled, "conditioning_llama3": embeds.llama.movedim(0, 1)}]]


def sample(model, sampler="euler", cfg=1.0, size=(16, 16), steps=6, positive=None, **options):
    comfy_sample = importlib.import_module("comfy.sample")
    noise = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return comfy_sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            "simple",
            positive or conditioning(1),
            conditioning(2),
            torch.zeros_like(noise),
            seed=3,
            disable_pbar=True,
            **options,
        )


def forward(model, size=(16, 16)):
    """One evaluation, with the weights where the patcher has left them."""
    x = torch.randn(2, 16, *size, generator=torch.Generator().manual_seed(5))
    (first, a), (second, b) = conditioning(1)[0], conditioning(2)[0]
    texts = {name: torch.cat((a[name], b[name])) for name in a}
    with torch.inference_mode():
        return model.model.apply_model(
            x,
            torch.tensor([0.7, 0.7]),
            c_crossattn=torch.cat((first, second)),
            y=texts["pooled_output"],
            encoder_hidden_states_llama3=texts["conditioning_llama3"],
        )


def assert_equal(ours, native):
    assert (ours - native).abs().max() <= TOLERANCE * native.abs().max()


def lora(scale=1.0):
    """A native LoRA of an attention, an expert and a modulation."""
    generator = torch.Generator().manual_seed(9)
    shapes = {
        "double_stream_blocks.0.block.attn1.to_q": (192, 192),
        "single_stream_blocks.1.block.ff_i.experts.2.w1": (512, 192),
        "single_stream_blocks.0.block.adaLN_modulation.1": (6 * 192, 192),
    }
    state = {}
    for name, (out, inner) in shapes.items():
        state[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, inner, generator=generator) * 0.1
        state[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(out, 4, generator=generator) * scale
    return state


def with_lora(model):
    comfy_sd = importlib.import_module("comfy.sd")
    patched, _ = comfy_sd.load_lora_for_models(model, None, lora(), 1.0, 0.0)
    assert len(patched.patches) == 3
    return patched


@pytest.mark.parametrize(
    ("variant", "sampler", "cfg", "size"),
    [
        ("dev", "lcm", 1.0, (16, 16)),
        ("full", "uni_pc", 5.0, (16, 16)),
        ("full", "heun", 5.0, (15, 22)),  # an odd latent, which ComfyUI pads
        ("fast", "euler_ancestral", 1.0, (8, 24)),
    ],
)
def test_samplers_give_the_native_latent(nano, variant, sampler, cfg, size):
    native = nano.native(variant)
    expected = sample(native, sampler, cfg, size)
    assert_equal(sample(accelerated(native), sampler, cfg, size), expected)
    assert torch.equal(sample(native, sampler, cfg, size), expected)  # the native model is as it was


def test_areas_masks_and_batches(nano):
    native = nano.native()
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    assert_equal(sample(accelerated(native), noise_mask=mask), sample(native, noise_mask=mask))


def test_weights_that_are_cast(nano):
    native = nano.native(dtype=torch.bfloat16, compute=torch.float32)
    assert_equal(sample(accelerated(native)), sample(native))


def test_bfloat16_is_no_further_from_float32_than_the_native_pass(nano):
    exact = sample(nano.native(dtype=torch.bfloat16, compute=torch.float32))
    native = nano.native(dtype=torch.bfloat16)
    ours, theirs = (float((sample(each) - exact).pow(2).mean()) for each in (accelerated(native), native))
    assert 0 < ours < 1.5 * theirs


def test_fp8_weights(nano):
    native = nano.native(dtype=torch.float8_e4m3fn, compute=torch.float32)
    assert_equal(sample(accelerated(native)), sample(native))


@pytest.mark.parametrize("order", ["before", "after"])
def test_native_loras(nano, order):
    native = nano.native()
    expected = sample(with_lora(native))
    assert not torch.allclose(expected, sample(native), rtol=0, atol=0.01)
    ours = accelerated(with_lora(native)) if order == "before" else with_lora(accelerated(native))
    assert_equal(sample(ours), expected)
    assert_equal(sample(accelerated(native)), sample(native))


def test_low_vram_with_a_lora(nano):
    """Most layers are cast and patched when they compute, some are loaded."""
    model = with_lora(nano.native())
    results = []
    for each in (model, accelerated(model)):
        each.patch_model(torch.device("cpu"), lowvram := 2_000_000)
        assert each.model.model_lowvram, f"all of it fits into {lowvram} bytes"
        assert any(getattr(module, "weight_function", []) for module in each.model.modules())
        results.append(forward(each))
        each.unpatch_model(torch.device("cpu"))
    assert_equal(results[1], results[0])


def test_weights_that_change_between_two_runs(nano):
    native = nano.native()
    ours = accelerated(native)
    sample(ours)
    with torch.no_grad():
        native.model.diffusion_model.caption_projection[0].linear.weight.mul_(1.5)
    assert_equal(sample(ours), sample(native))


def test_an_unloaded_model_leaves_no_copy(nano):
    native = nano.native()
    ours = accelerated(native)
    expected = sample(ours)
    forward = ours.object_patches["diffusion_model._forward"]
    assert forward._borrowed is not None
    importlib.import_module("comfy.model_management").unload_all_models()
    assert forward._borrowed is None
    assert torch.equal(sample(ours), expected)


def test_layers_of_another_package(nano):
    """Layers that compute in their own way are called, as those that read GGUF."""
    native = nano.native()

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for module in native.model.diffusion_model.modules():
        if type(module).__name__ == "Linear" and module.weight.shape == (192, 192):
            module.__class__ = Doubled
    assert_equal(sample(accelerated(native)), sample(native))


def test_wrappers_of_other_packages_run(nano):
    extension = importlib.import_module("comfy.patcher_extension")
    calls = []

    def wrapper(executor, *arguments, **options):
        calls.append(arguments[0].shape)
        return executor(*arguments, **options)

    ours = accelerated(nano.native())
    ours.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "theirs", wrapper)
    sample(ours, steps=3)
    assert len(calls) == 3


def test_an_override_of_the_attention_is_used(nano):
    calls = []

    def override(function, *arguments, **options):
        calls.append(1)
        return function(*arguments, **options)

    model = nano.native()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    expected = sample(model)
    used = len(calls)
    assert used
    assert torch.equal(sample(accelerated(model)), expected)
    assert len(calls) == 2 * used


@pytest.mark.parametrize(("mode", "evaluations"), [("balanced", 14), ("turbo", 8)])
@pytest.mark.parametrize("sampler", ["lcm", "euler"])
def test_modes_leave_out_evaluations(nano, mode, evaluations, sampler):
    native, prompt = nano.native(), of_a_prompt()
    ours, calls = accelerated(native, mode), []
    whole = type(ours.object_patches["diffusion_model._forward"]).__call__

    def counted(self, *arguments, **options):
        calls.append(1)
        return whole(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ours.object_patches["diffusion_model._forward"]), "__call__", counted)
        nearly = sample(ours, sampler, steps=28, positive=prompt)
    assert len(calls) <= max(evaluations, 10 if sampler == "euler" else 4)
    exact = sample(native, sampler, steps=28, positive=prompt)
    apart = float((nearly - exact).pow(2).mean() / exact.pow(2).mean())
    assert apart < 0.1, f"{apart:.3f} of the exact latent's power"


def test_another_model_is_refused(nano):
    from hidream.errors import InvalidInput

    model = nano.native()
    model.add_object_patch("diffusion_model", torch.nn.Linear(1, 1))
    with pytest.raises(InvalidInput, match="model is a Linear; accepted: a HiDream-I1 model"):
        accelerated(model)
