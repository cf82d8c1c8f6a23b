"""Accelerate HiDream: a native MODEL whose forward pass is hidream's, with ComfyUI's own weights.

The weights stay in ComfyUI's modules, which it loads, moves, casts and patches as before: LoRAs, low VRAM and its
memory management go on working, and so does every sampler. `hidream.model.network.borrowed` computes with them. The
forward pass is put in place by an object patch of `diffusion_model._forward`, so that wrappers of other packages run
around it as around ComfyUI's own.

The modes `balanced` and `turbo` leave out steps, as hidream's own samplers do (`hidream.model.sampling.step_cache`):
the estimate of the final latent is carried on from earlier steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io

if TYPE_CHECKING:
    import torch

    from hidream.model.network.borrowed import BorrowedTransformer

KEY = "hidream_accelerate"
"""Names what this node adds to a MODEL."""
FORWARD = "diffusion_model._forward"
NOISY = ("lcm", "ancestral", "sde")
"""Parts of the names of samplers that draw fresh noise in each step, as Flash does."""


class AccelerateHiDream(io.ComfyNode):
    """Takes a native MODEL and returns it with another forward pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            "HidreamAccelerate",
            display_name="Accelerate HiDream",
            category="hidream",
            description="Computes a HiDream-I1 MODEL with hidream's forward pass. Samplers, LoRAs and management of "
            "memory stay ComfyUI's.",
            inputs=[
                io.Model.Input("model", tooltip="a HiDream-I1 model, from whatever loader"),
                io.Combo.Input(
                    "mode",
                    options=["exact", "balanced", "turbo"],
                    default="exact",
                    tooltip="exact: the same image. balanced, turbo: fewer evaluations of the model, nearly the same.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, mode: str) -> io.NodeOutput:
        """Patch a clone of the model."""
        return io.NodeOutput(accelerated(model, mode))


def accelerated(model: Any, mode: str) -> Any:
    """Return a clone of a ModelPatcher that computes with hidream. Raises InvalidInput if it is no HiDream-I1."""
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    from hidream.types import Mode

    diffusion_model = model.get_model_object("diffusion_model")
    forward = Forward(diffusion_model, config_of(model))
    clone = model.clone()
    clone.add_object_patch(FORWARD, forward)
    calls = {
        CallbacksMP.ON_PRE_RUN: forward.check,
        CallbacksMP.ON_APPLY_HOOKS: forward.check,
        CallbacksMP.ON_LOAD: forward.forget,
        CallbacksMP.ON_CLEANUP: forward.forget,
        CallbacksMP.ON_DETACH: forward.drop,
    }
    for call, function in calls.items():
        clone.remove_callbacks_with_key(call, KEY)
        clone.add_callback_with_key(call, KEY, function)
    for kind in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE):
        clone.remove_wrappers_with_key(kind, KEY)
    if Mode(mode) is not Mode.EXACT:
        clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _PlanSteps(Mode(mode), forward.patch))
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict)
    return clone


def config_of(model: Any) -> Any:
    """Read the numbers of a native HiDream-I1. Raises InvalidInput on another model."""
    from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel

    from hidream.errors import InvalidInput
    from hidream.model.network.config import TransformerConfig

    diffusion_model = model.get_model_object("diffusion_model")
    if not isinstance(diffusion_model, HiDreamImageTransformer2DModel):
        raise InvalidInput(
            f"model is a {type(diffusion_model).__name__}; accepted: a HiDream-I1 model (dev, full, fast or an edit "
            "model), from Load Diffusion Model or a loader of another package",
            field="model",
        )
    return TransformerConfig.from_json(
        {"_class_name": type(diffusion_model).__name__, **model.model.model_config.unet_config}
    )


class Forward:
    """What takes the place of the native `_forward`: the same tensors in, the same tensor out."""

    def __init__(self, diffusion_model: Any, config: Any) -> None:
        self._native, self._config = diffusion_model, config
        self._borrowed: BorrowedTransformer | None = None
        self._plain = self._copied = False
        self.patch = config.patch_size

    def __call__(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        y: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        encoder_hidden_states_llama3: torch.Tensor | None = None,
        image_cond: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """Return the velocity [B, C, H, W] at x [B, C, H, W] and the times t [B]."""
        import torch
        from comfy.ldm.common_dit import pad_to_patch_size

        options = transformer_options or {}
        if "optimized_attention_override" in options:  # another package replaces the attention: that is not ours
            native = type(self._native)._forward
            return native(self._native, x, t, y, context, encoder_hidden_states_llama3, image_cond, control, options)
        height, width = x.shape[-2:]
        if image_cond is not None:  # of an edit model: the image to edit, beside the latent
            x = torch.cat([x, image_cond], dim=-1)
        padded = pad_to_patch_size(x, (self.patch, self.patch))
        llama = encoder_hidden_states_llama3.movedim(1, 0)
        times = t.reshape(-1).expand(x.shape[0])
        velocity = self._transformer(x).velocity(padded, times, context, llama, y)
        return velocity[:, :, :height, :width]

    def forget(self, *_: Any) -> None:
        """Forget prompts, at the end of a run and when weights are loaded."""
        if self._borrowed is not None:
            self._borrowed.forget()

    def drop(self, _patcher: Any, unloaded: bool) -> None:
        """Let copies go with the model that ComfyUI unloads."""
        if unloaded:
            self._borrowed = None

    def check(self, *_: Any) -> None:
        """Before a run, and when hooks have changed weights within one: forget what depends on others than these."""
        from hidream.model.network.borrowed import is_copy

        if self._borrowed is None:
            return
        self._borrowed.forget()
        stale = self._plain and not lendable(self._native)
        if stale or (self._copied and not is_copy(self._borrowed.transformer, self._native, lent)):
            self._borrowed = None

    def _transformer(self, x: torch.Tensor) -> BorrowedTransformer:
        """Build ours around the native layers; of a small model on a CPU with copies, for kernels that want some."""
        from hidream.model.loading import COPIES_SHARE
        from hidream.model.memory.hardware import host_bytes
        from hidream.model.network.borrowed import BorrowedTransformer, borrow, copy_of, onednn_is_faster, size_of

        if self._borrowed is None:
            self._plain = x.device.type == "cpu" and lendable(self._native)
            onednn = self._plain and onednn_is_faster(x.dtype)
            self._copied = self._plain and size_of(self._native, x.dtype) < COPIES_SHARE * host_bytes()
            if self._copied:
                transformer = copy_of(self._config, self._native, lent, x.dtype, onednn=onednn)
            else:
                transformer = borrow(self._config, self._native, lent if onednn else None)
            self._borrowed = BorrowedTransformer(transformer)
        return self._borrowed


def lendable(layers: torch.nn.Module) -> bool:
    """Whether all linear layers are ComfyUI's plain ones, which multiply with what `cast_bias_weight` returns."""
    import torch
    from comfy.ops import disable_weight_init

    plain = disable_weight_init.Linear
    return all(
        isinstance(layer, plain)
        and type(layer).forward is plain.forward
        and type(layer).forward_comfy_cast_weights is plain.forward_comfy_cast_weights
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))
        for layer in layers.modules()
        if isinstance(layer, torch.nn.Linear)
    )


def lent(layer: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what a plain layer on a CPU multiplies with: patched and cast, if it must be."""
    if layer.weight.dtype is dtype and not (layer.comfy_cast_weights or layer.weight_function or layer.bias_function):
        return layer.weight, layer.bias
    from comfy.ops import cast_bias_weight

    return cast_bias_weight(layer, dtype=dtype, device=layer.weight.device, bias_dtype=dtype)


class _Steps:
    """The plan of one run of a sampler, and the estimates so far."""

    def __init__(self, sigmas: tuple[float, ...], evaluated: tuple[bool, ...], slope: float) -> None:
        from hidream.model.sampling.step_cache import History

        self.sigmas, self.evaluated = sigmas, evaluated
        self._history, self._noted = History(sigmas, slope), -1

    def estimate(self, step: int) -> torch.Tensor | None:
        """Return the final latent as the earlier steps let it expect; None where the model is to be evaluated."""
        return None if self.evaluated[step] or self._noted < 0 else self._history.estimate(step)

    def note(self, x0: torch.Tensor, step: int) -> None:
        """Remember what the model says at a step: its first answer, where a sampler asks twice."""
        if step > self._noted:
            self._history.note(x0, step)
            self._noted = step

    def step_at(self, sigma: float) -> int | None:
        """Return the number of the step at a noise level; None between two steps, where some samplers evaluate too."""
        near = min(range(len(self.evaluated)), key=lambda i: abs(self.sigmas[i] - sigma))
        return near if abs(self.sigmas[near] - sigma) < 1e-5 else None


class _PlanSteps:
    """Settles before a sampler's first step which of them evaluate the model."""

    def __init__(self, mode: Any, patch: int) -> None:
        self._mode, self._patch = mode, patch

    def __call__(self, executor: Any, guider: Any, sigmas: torch.Tensor, extra_args: dict[str, Any], *rest: Any) -> Any:
        from hidream.model.sampling.sampler import Schedule
        from hidream.model.sampling.step_cache import SLOPE, plan
        from hidream.types import Sampler

        function = getattr(executor.class_obj, "sampler_function", None)
        name = getattr(function, "__name__", "")
        like = Sampler.FLASH if any(part in name for part in NOISY) else Sampler.EULER
        levels = tuple(sigmas.tolist())
        noise = rest[1]
        tokens = noise.shape[-2] * noise.shape[-1] // self._patch**2
        schedule = Schedule(levels, tuple(1000 * level for level in levels[:-1]))
        steps = _Steps(levels, plan(self._mode, like, schedule, tokens), SLOPE[like])
        extra_args["model_options"].setdefault("transformer_options", {})[KEY] = steps
        return executor(guider, sigmas, extra_args, *rest)


def predict(executor: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: dict[str, Any], seed: Any) -> Any:
    """Evaluate the model, or carry its estimate of the final latent on from earlier steps."""
    steps: _Steps | None = model_options.get("transformer_options", {}).get(KEY)
    step = None if steps is None else steps.step_at(float(timestep.flatten()[0]))
    if steps is None or step is None:
        return executor(x, timestep, model_options, seed)
    estimate = steps.estimate(step)
    if estimate is not None:
        return estimate
    x0 = executor(x, timestep, model_options, seed)
    steps.note(x0, step)
    return x0
