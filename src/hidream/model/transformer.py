"""The HiDream-I1 transformer: a noisy latent, a time and a prompt to a velocity.

Shapes: B batch, N image tokens, L text tokens of one encoder, D width, C latent channels, h × w the grid of tokens.

    img   [B, N, D]    image tokens (in padded mode one more: the reference's pad token, see below)
    txt   [B, 2L, D]   running text tokens: T5, then Llama's last projection
    fresh [B, L, D]    one Llama layer's tokens, different in every block: looked at, then thrown away
    vec   [B, D]       silu(time + pooled CLIP), from which every block's modulation is made
    mod   [B, k·D]     one block's shifts, scales and gates for one step

Double blocks attend jointly over (img, txt, fresh) with separate weights for image and text, single blocks with the
same weights for all. What the reference computes and throws away (the fresh tokens' queries and feed-forward, the last
block's text) is not computed here.

What does not change from step to step (projections, rotary table, normalised fresh tokens) is computed once per
request by `condition`; `velocity` then is one step. What only depends on the step's time, the modulations, is computed
by `modulation` for one step, or by `modulations` for all steps of a request in one product per block: a seventh of the
weights, which then need not be at hand while the steps run. `forward` is all of it in one call.

Padded mode repeats the reference on latents that are not square: there they are padded to `max_tokens` tokens whose
keys are 0, so that each pad token still takes part with weight exp(0). All pad tokens are identical, so one stands for
all: its logit is raised by log(number of pad tokens), which gives exactly the same softmax.

Source: HiDream-ai/HiDream-I1 @9b42dd6, models/transformers/transformer_hidream_image.py, lines 364-520.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hidream.model.attention import Attention, Rope, attend, rope_table, rotate
from hidream.model.config import TransformerConfig
from hidream.model.linear import UNCHANGED, Changes, Linear
from hidream.model.moe import Gate, MixtureOfExperts, SwiGLU

LAYER_NORM_EPS = 1e-6
TIME_CHANNELS = 256
TIME_PERIOD = 10_000.0


class Conditioning(NamedTuple):
    """What a request's prompt and shape give to every step."""

    txt: Tensor  # [B, 2L, D]
    fresh: Tensor  # [blocks, B, L, D], normalised
    pooled: Tensor  # [B, D]
    rope: Rope  # of (img, txt)
    key_mask: Tensor | None  # [N + 1, 1, 1]: 0 for the pad token; None without padding
    bias: Tensor | None  # [N + 1 + 3L]: log(pad tokens) for the pad token
    changes: Changes = UNCHANGED  # what the request's LoRAs add to linear layers


class Modulation(NamedTuple):
    """What one step's time gives to every block."""

    blocks: tuple[Tensor, ...]  # [B, 12D] of each double block, then [B, 6D] of each single block
    final: Tensor  # [B, 2D]


class Walks(NamedTuple):
    """How to come by what may live in host memory (`stream.py`), in the order in which it is needed."""

    blocks: Iterable[DoubleBlock | SingleBlock]
    modulations: Iterable[DoubleBlock | SingleBlock]  # the same blocks, for the layer that modulates them
    captions: Iterable[nn.Module]  # the caption projections


class DoubleBlock(nn.Module):
    """Image and text with weights of their own; a mixture of experts for the image, a plain SwiGLU for the text."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.dim, 12 * config.dim))
        self.attn1 = Attention(config.dim, config.num_attention_heads, double=True)
        self.ff_i = _mixture(config)
        self.ff_t = SwiGLU(config.dim, 4 * config.dim)

    def forward(self, img: Tensor, txt: Tensor, fresh: Tensor, mod: Tensor, c: Conditioning) -> tuple[Tensor, Tensor]:
        """Return the next img and txt."""
        parts = mod[:, None].chunk(12, dim=-1)
        shift_i, scale_i, gate_i, shift_mlp_i, scale_mlp_i, gate_mlp_i = parts[:6]
        shift_t, scale_t, gate_t, shift_mlp_t, scale_mlp_t, gate_mlp_t = parts[6:]

        q_i, k_i, v_i = self.attn1.qkv(modulate(norm(img), scale_i, shift_i), "", c.changes)
        q_t, k_t, v_t = self.attn1.qkv(modulate(norm(txt), scale_t, shift_t), "_t", c.changes)
        k_f, v_f = self.attn1.kv(modulate(fresh, scale_t, shift_t), "_t", c.changes)
        rope = Rope(c.rope.cos[: img.shape[1]], c.rope.sin[: img.shape[1]])
        q_i, k_i = rotate(q_i, rope), mask_pad(rotate(k_i, rope), c)
        mixed = attend(torch.cat((q_i, q_t), 1), torch.cat((k_i, k_t, k_f), 1), torch.cat((v_i, v_t, v_f), 1), c.bias)

        img = torch.addcmul(img, gate_i, self.attn1.out(mixed[:, : img.shape[1]], "", c.changes))
        txt = torch.addcmul(txt, gate_t, self.attn1.out(mixed[:, img.shape[1] :], "_t", c.changes))
        img = torch.addcmul(img, gate_mlp_i, self.ff_i(modulate(norm(img), scale_mlp_i, shift_mlp_i), c.changes))
        txt = torch.addcmul(txt, gate_mlp_t, self.ff_t(modulate(norm(txt), scale_mlp_t, shift_mlp_t), c.changes))
        return img, txt

    def pack(self) -> None:
        """Lay weights that share an input side by side."""
        self.attn1.pack()
        self.ff_i.pack()
        self.ff_t.pack()


class SingleBlock(nn.Module):
    """Image and text in one sequence, with the same weights and the same mixture of experts."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.dim, 6 * config.dim))
        self.attn1 = Attention(config.dim, config.num_attention_heads, double=False)
        self.ff_i = _mixture(config)

    def forward(self, x: Tensor, fresh: Tensor, mod: Tensor, c: Conditioning, keep: int) -> Tensor:
        """Return the next x = (img, txt), of which only the first `keep` tokens are computed."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = mod[:, None].chunk(6, dim=-1)

        normed = modulate(norm(x), scale, shift)
        k_f, v_f = self.attn1.kv(modulate(fresh, scale, shift), "", c.changes)
        if keep == x.shape[1]:
            q, k, v = self.attn1.qkv(normed, "", c.changes)
        else:
            q, (k, v) = self.attn1.q(normed[:, :keep], c.changes), self.attn1.kv(normed, "", c.changes)
        q = rotate(q, Rope(c.rope.cos[:keep], c.rope.sin[:keep]))
        k = mask_pad(rotate(k, c.rope), c)
        mixed = attend(q, torch.cat((k, k_f), 1), torch.cat((v, v_f), 1), c.bias)

        x = torch.addcmul(x[:, :keep], gate, self.attn1.out(mixed, "", c.changes))
        return torch.addcmul(x, gate_mlp, self.ff_i(modulate(norm(x), scale_mlp, shift_mlp), c.changes))

    def pack(self) -> None:
        """Lay weights that share an input side by side."""
        self.attn1.pack()
        self.ff_i.pack()


class FinalLayer(nn.Module):
    """Image tokens to patches of the output; here the order of the modulation is shift, scale."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = Linear(config.dim, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.dim, 2 * config.dim))

    def forward(self, img: Tensor, mod: Tensor, c: Conditioning) -> Tensor:
        """[B, N, D] to [B, N, p·p·C]."""
        shift, scale = mod[:, None].chunk(2, dim=-1)
        return self.linear(modulate(norm(img), scale, shift), c.changes)


class Embedder(nn.Module):
    """Two linear layers with a SiLU between, for the time and for the pooled text."""

    def __init__(self, inner: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = Linear(inner, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, x: Tensor, changes: Changes = UNCHANGED) -> Tensor:
        """[B, inner] to [B, D]."""
        return self.linear_2(F.silu(self.linear_1(x, changes)), changes)


class Transformer(nn.Module):
    """HiDreamImageTransformer2DModel, with the published parameter names."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        t5, llama = config.caption_channels
        widths = [llama] * (config.num_layers + config.num_single_layers) + [t5]
        self.t_embedder = nn.ModuleDict({"timestep_embedder": Embedder(TIME_CHANNELS, config.dim)})
        self.p_embedder = nn.ModuleDict({"pooled_embedder": Embedder(config.text_emb_dim, config.dim)})
        self.x_embedder = nn.ModuleDict({"proj": Linear(config.in_channels * config.patch_size**2, config.dim)})
        self.double_stream_blocks = nn.ModuleList(
            nn.ModuleDict({"block": DoubleBlock(config)}) for _ in range(config.num_layers)
        )
        self.single_stream_blocks = nn.ModuleList(
            nn.ModuleDict({"block": SingleBlock(config)}) for _ in range(config.num_single_layers)
        )
        self.final_layer = FinalLayer(config)
        self.caption_projection = nn.ModuleList(
            nn.ModuleDict({"linear": Linear(width, config.dim, bias=False)}) for width in widths
        )
        for name, module in self.named_modules():
            if isinstance(module, Linear | Gate):
                module.published = name
        self.walks = Walks(self.blocks, self.blocks, self.caption_projection)

    @property
    def blocks(self) -> list[DoubleBlock | SingleBlock]:
        """All blocks, the double ones first."""
        layers = (*self.double_stream_blocks, *self.single_stream_blocks)
        return [cast(DoubleBlock | SingleBlock, layer["block"]) for layer in layers]

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        t5: Tensor,
        llama: Tensor,
        pooled: Tensor,
        padded: bool = False,
    ) -> Tensor:
        """Velocity [B, C, H, W] of latent [B, C, H, W] at timestep [B], 0 to 1000; for the rest see `condition`."""
        grid = (latent.shape[2] // self.config.patch_size, latent.shape[3] // self.config.patch_size)
        c = self.condition(t5, llama, pooled, grid, padded)
        return self.velocity_at(latent, timestep, c)

    def condition(
        self,
        t5: Tensor,
        llama: Tensor,
        pooled: Tensor,
        grid: tuple[int, int],
        padded: bool = False,
        changes: Changes = UNCHANGED,
    ) -> Conditioning:
        """Prepare a prompt for `velocity`.

        t5 [B, L, D_T5]; llama [layers, B, L, D_Llama], the hidden states without the embedding's; pooled [B, 2048],
        both CLIPs'; grid (h, w) in tokens. `padded` repeats the reference's padding of shapes that are not square.
        """
        said = [*(llama[layer] for layer in self.config.llama_layers), t5]
        captions = [module["linear"](x, changes) for module, x in zip(self.walks.captions, said, strict=True)]  # type: ignore[index]
        txt = torch.cat((captions.pop(), captions[-1]), dim=1)
        pads = max(self.config.max_tokens - grid[0] * grid[1], 0) if padded and grid[0] != grid[1] else 0
        text_tokens = txt.shape[1] + (1 if pads else 0)
        rope = rope_table(grid, text_tokens, self.config.axes_dims_rope, t5.device)
        key_mask = bias = None
        if pads:
            tokens = grid[0] * grid[1]
            key_mask = torch.ones(tokens + 1, 1, 1, dtype=t5.dtype, device=t5.device)
            key_mask[tokens] = 0
            bias = torch.zeros(tokens + text_tokens + captions[-1].shape[1], dtype=t5.dtype, device=t5.device)
            bias[tokens] = math.log(pads)
        vec = self.p_embedder["pooled_embedder"](pooled, changes)
        fresh = torch.stack([norm(caption) for caption in captions])
        return Conditioning(txt, fresh, vec, rope, key_mask, bias, changes)

    def modulation(self, timestep: Tensor, c: Conditioning) -> Modulation:
        """Modulate one step at timestep [B], 0 to 1000."""
        return self._modulate(timestep, c.pooled, c.changes)

    def modulations(self, timesteps: Sequence[float], c: Conditioning) -> list[Modulation]:
        """Modulate all steps of a request, each block in one product.

        One step of the published model takes 2 MB (bf16), the 28 steps of Dev 55 MB; the weights that make them 5 GB.
        """
        batch, steps = c.pooled.shape[0], len(timesteps)
        times = torch.tensor(timesteps, device=c.pooled.device).repeat_interleave(batch)
        whole = self._modulate(times, c.pooled.repeat(steps, 1), c.changes)  # [steps·B, …]
        tables = [table.split(batch) for table in (*whole.blocks, whole.final)]
        return [Modulation(blocks=tuple(step[:-1]), final=step[-1]) for step in zip(*tables, strict=True)]

    def _modulate(self, timestep: Tensor, pooled: Tensor, changes: Changes) -> Modulation:
        time = sinusoid(timestep).to(pooled.dtype)
        vec = F.silu(self.t_embedder["timestep_embedder"](time, changes) + pooled)
        tables = [block.adaLN_modulation[1](vec, changes) for block in self.walks.modulations]
        return Modulation(blocks=tuple(tables), final=self.final_layer.adaLN_modulation[1](vec, changes))

    def velocity_at(self, latent: Tensor, timestep: Tensor, c: Conditioning) -> Tensor:
        """One step at timestep [B], with its modulation made on the spot."""
        return self.velocity(latent, self.modulation(timestep, c), c)

    def velocity(self, latent: Tensor, modulation: Modulation, c: Conditioning) -> Tensor:
        """One step: latent [B, C, H, W] and the step's modulation to the velocity, noise − picture, [B, C, H, W]."""
        p = self.config.patch_size
        patches = rearrange(latent, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        tokens = patches.shape[1]
        if c.key_mask is not None:
            patches = F.pad(patches, (0, 0, 0, 1))
        img = self.x_embedder["proj"](patches, c.changes)

        txt, doubles, last = c.txt, len(self.double_stream_blocks), len(modulation.blocks) - 1
        x = img
        for i, block in enumerate(self.walks.blocks):
            if isinstance(block, DoubleBlock):
                img, txt = block(img, txt, c.fresh[i], modulation.blocks[i], c)
                continue
            if i == doubles:
                x = torch.cat((img, txt), dim=1)
            x = block(x, c.fresh[i], modulation.blocks[i], c, tokens if i == last else x.shape[1])

        # the published weights answer with picture − noise
        out = -self.final_layer(x[:, :tokens], modulation.final, c)
        return rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=latent.shape[2] // p, p=p, q=p)

    def pack(self) -> None:
        """Lay weights that share an input side by side (`pack.py`); call it last, after any move or cast."""
        for block in self.blocks:
            block.pack()


def norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis, without parameters."""
    return F.layer_norm(x, (x.shape[-1],), eps=LAYER_NORM_EPS)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x·(1 + scale) + shift, with scale and shift [B, 1, D]."""
    return torch.addcmul(shift, x, 1 + scale)


def mask_pad(k: Tensor, c: Conditioning) -> Tensor:
    """Set the pad token's key to 0, in padded mode; k [B, S, H, K] starts with the image tokens."""
    if c.key_mask is None:
        return k
    tokens = c.key_mask.shape[0]
    return torch.cat((k[:, :tokens] * c.key_mask, k[:, tokens:]), dim=1)


def sinusoid(timestep: Tensor) -> Tensor:
    """Times [B] to [B, 256], cosines first, float32 (diffusers' Timesteps with flip_sin_to_cos, no shift)."""
    half = TIME_CHANNELS // 2
    exponent = -math.log(TIME_PERIOD) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * exponent.exp()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _mixture(config: TransformerConfig) -> MixtureOfExperts:
    return MixtureOfExperts(config.dim, 4 * config.dim, config.num_routed_experts, config.num_activated_experts)
