"""The HiDream-I1 transformer: a noisy latent, a time and a prompt to a velocity.

Shapes: B segments of a request, S segments in all, T rows (tokens of all of them), L text tokens of one encoder,
D width, C latent channels, h × w the grid of tokens; see `packed.py`.

    img   [T, D]    image tokens (in padded mode one more: the reference's pad token, see below)
    txt   [T, D]    running text tokens: of each segment T5, then Llama's last projection
    fresh [T, D]    one Llama layer's tokens, different in every block: looked at, then thrown away
    vec   [B, D]    silu(time + pooled CLIP), from which every block's modulation is made
    mod   [S, k·D]  one block's shifts, scales and gates for one step

Double blocks attend jointly over (img, txt, fresh) with separate weights for image and text, single blocks with the
same weights for all. What the reference computes and throws away (the fresh tokens' queries and feed-forward, the last
block's text) is not computed here.

What does not change from step to step (projections, rotary table, normalised fresh tokens) is computed once per
request by `condition`; `Packed.of` lays out the requests that step together; `velocity` then is one step of all of
them. What only depends on the step's time, the modulations, is computed by `modulation` for one step, or by
`modulations` for all steps of a request in one product per block: a seventh of the weights, which then need not be at
hand while the steps run. `forward` is all of it in one call.

Padded mode repeats the reference on latents that are not square: there they are padded to `max_tokens` tokens whose
keys are 0, so that each pad token still takes part with weight exp(0). All pad tokens are identical, so one stands for
all: its logit is raised by log(number of pad tokens), which gives exactly the same softmax.

Source: HiDream-ai/HiDream-I1 @9b42dd6, models/transformers/transformer_hidream_image.py, lines 364-520.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hidream.model.network import matmul
from hidream.model.network.attention import Attention, rope_table, rotate
from hidream.model.network.config import TransformerConfig
from hidream.model.network.linear import NOWHERE, UNCHANGED, Changes, Linear, Spread, everywhere
from hidream.model.network.moe import Gate, MixtureOfExperts, SwiGLU
from hidream.model.network.ragged_batch import Conditioning, Packed

LAYER_NORM_EPS = 1e-6
TIME_CHANNELS = 256
TIME_PERIOD = 10_000.0


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

    def forward(self, img: Tensor, txt: Tensor, fresh: Tensor, mod: Tensor, p: Packed) -> tuple[Tensor, Tensor]:
        """Return the next img and txt."""
        shift_i, scale_i, gate_i, shift_mlp_i, scale_mlp_i, gate_mlp_i, *text = mod.chunk(12, dim=-1)
        shift_t, scale_t, gate_t, shift_mlp_t, scale_mlp_t, gate_mlp_t = text
        in_img, in_txt = p.img.spread, p.txt.spread

        q_i, k_i, v_i = self.attn1.qkv(p.img.each(modulate, norm(img), scale_i, shift_i), "", in_img)
        q_t, k_t, v_t = self.attn1.qkv(p.txt.each(modulate, norm(txt), scale_t, shift_t), "_t", in_txt)
        k_f, v_f = self.attn1.kv(p.fresh.each(modulate, fresh, scale_t, shift_t), "_t", p.fresh.spread)
        q_i, k_i = rotate(q_i, p.rope_img), masked(rotate(k_i, p.rope_img), p.key_mask)
        streams = (p.img, p.txt, p.fresh)
        seen_i, seen_t = p.attended((q_i, q_t), (k_i, k_t, k_f), (v_i, v_t, v_f), streams[:2], streams)

        img = p.img.add(img, gate_i, self.attn1.out(seen_i, "", in_img))
        txt = p.txt.add(txt, gate_t, self.attn1.out(seen_t, "_t", in_txt))
        img = p.img.add(img, gate_mlp_i, self.ff_i(p.img.each(modulate, norm(img), scale_mlp_i, shift_mlp_i), in_img))
        txt = p.txt.add(txt, gate_mlp_t, self.ff_t(p.txt.each(modulate, norm(txt), scale_mlp_t, shift_mlp_t), in_txt))
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

    def forward(self, x: Tensor, fresh: Tensor, mod: Tensor, p: Packed, last: bool) -> Tensor:
        """Return the next x = (img, txt) of each segment; of the last block only img."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = mod.chunk(6, dim=-1)
        spread = p.both.spread

        normed = p.both.each(modulate, norm(x), scale, shift)
        k_f, v_f = self.attn1.kv(p.fresh.each(modulate, fresh, scale, shift), "", p.fresh.spread)
        if last:
            q, (k, v) = self.attn1.q(p.images(normed), p.img.spread), self.attn1.kv(normed, "", spread)
            x, rope, rows = p.images(x), p.rope_img, p.img
        else:
            q, k, v = self.attn1.qkv(normed, "", spread)
            rope, rows = p.rope_both, p.both
        k = masked(rotate(k, p.rope_both), p.key_mask_both)
        (seen,) = p.attended((rotate(q, rope),), (k, k_f), (v, v_f), (rows,), (p.both, p.fresh))

        x = rows.add(x, gate, self.attn1.out(seen, "", rows.spread))
        return rows.add(x, gate_mlp, self.ff_i(rows.each(modulate, norm(x), scale_mlp, shift_mlp), rows.spread))

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

    def forward(self, img: Tensor, mod: Tensor, p: Packed) -> Tensor:
        """[T, D] to [T, p·p·C]."""
        shift, scale = mod.chunk(2, dim=-1)
        return self.linear(p.img.each(modulate, norm(img), scale, shift), p.img.spread)


class Embedder(nn.Module):
    """Two linear layers with a SiLU between, for the time and for the pooled text."""

    def __init__(self, inner: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = Linear(inner, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, x: Tensor, spread: Spread = NOWHERE) -> Tensor:
        """[B, inner] to [B, D]."""
        return self.linear_2(F.silu(self.linear_1(x, spread)), spread)


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
        self.compiled = False

    def lay_out(self, conditionings: Sequence[Conditioning]) -> Packed:
        """Lay out the requests that step together, for `velocity`; for compiled blocks so that they are one graph."""
        changed = any(c.changes for c in conditionings)  # each set of LoRAs would be a graph of its own
        return Packed.of(conditionings, indexed=self.compiled and not changed)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Have torch.compile make one graph of each kind of block, for any mix of requests; call it last.

        The first steps then take minutes. Weights must stay where they are: every place would be a new graph.
        """
        self.compiled = True
        self.lay(False)
        for block in self.blocks:
            block.compile(fullgraph=True, dynamic=True, backend=backend)

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
        spread = everywhere(changes)
        said = [*(llama[layer] for layer in self.config.llama_layers), t5]
        captions = [module["linear"](x, spread) for module, x in zip(self.walks.captions, said, strict=True)]  # type: ignore[index]
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
        vec = self.p_embedder["pooled_embedder"](pooled, spread)
        fresh = torch.stack([norm(caption) for caption in captions])
        return Conditioning(txt, fresh, vec, rope, key_mask, bias, changes)

    def modulation(self, timestep: Tensor, c: Conditioning) -> Tensor:
        """Modulate one step at timestep [B], 0 to 1000: every block's mod, then that of the final layer, [B, M]."""
        return self._modulate(timestep, c.pooled, everywhere(c.changes))

    def modulations(self, timesteps: Sequence[float], c: Conditioning) -> list[Tensor]:
        """Modulate all steps of a request, each block in one product.

        One step of the published model takes 2 MB (bf16), the 28 steps of Dev 55 MB; the weights that make them 5 GB.
        """
        batch, steps = c.pooled.shape[0], len(timesteps)
        times = torch.tensor(timesteps, device=c.pooled.device).repeat_interleave(batch)
        return list(self._modulate(times, c.pooled.repeat(steps, 1), everywhere(c.changes)).split(batch))

    def _modulate(self, timestep: Tensor, pooled: Tensor, spread: Spread) -> Tensor:
        time = sinusoid(timestep).to(pooled.dtype)
        vec = F.silu(self.t_embedder["timestep_embedder"](time, spread) + pooled)
        mods = [block.adaLN_modulation[1](vec, spread) for block in self.walks.modulations]
        return torch.cat((*mods, self.final_layer.adaLN_modulation[1](vec, spread)), dim=-1)

    def velocity_at(self, latent: Tensor, timestep: Tensor, c: Conditioning) -> Tensor:
        """One step of one request at timestep [B], with its modulation made on the spot."""
        return self.velocity([latent], [self.modulation(timestep, c)], self.lay_out([c]))[0]

    def velocity(self, latents: Sequence[Tensor], modulations: Sequence[Tensor], p: Packed) -> list[Tensor]:
        """One step of each request: latents [B, C, H, W] and modulations [B, M] to velocities, noise − picture.

        The requests are those of `Packed.of`, in the same order; the velocities are [B, C, H, W].
        """
        mods = self._cut(p.modulation(modulations))
        img = self.x_embedder["proj"](p.ordered([self._patches(x, p) for x in latents]), p.img.spread)

        txt, doubles, last = p.text, len(self.double_stream_blocks), len(mods) - 2
        x = img
        for i, block in enumerate(self.walks.blocks):
            if isinstance(block, DoubleBlock):
                img, txt = self._computing(block, p)(img, txt, p.news[i], mods[i], p)
                continue
            if i == doubles:
                x = p.joined(img, txt)
            x = self._computing(block, p)(x, p.news[i], mods[i], p, i == last)

        # the published weights answer with picture − noise
        out = -self.final_layer(x, mods[-1], p)
        return [self._picture(part, x) for part, x in zip(p.apart(out), latents, strict=True)]

    def _computing(self, block: DoubleBlock | SingleBlock, p: Packed) -> Callable[..., Any]:
        """How to compute a block: as it is compiled, if it is, but for layouts that would make a new graph."""
        return block.forward if self.compiled and p.image_rows is None else block

    def _cut(self, modulation: Tensor) -> list[Tensor]:
        """[S, M] to each block's [S, k·D], and the final layer's."""
        d, doubles, singles = self.config.dim, len(self.double_stream_blocks), len(self.single_stream_blocks)
        return list(modulation.split([12 * d] * doubles + [6 * d] * singles + [2 * d], dim=-1))

    def _patches(self, latent: Tensor, p: Packed) -> Tensor:
        """Latent [B, C, H, W] to tokens [B, N, p·p·C]."""
        size = self.config.patch_size
        return rearrange(latent, "b c (h p) (w q) -> b (h w) (p q c)", p=size, q=size)

    def _picture(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Tokens [B, N, p·p·C] to a latent; what stands behind them is the pad token."""
        size = self.config.patch_size
        rows, columns = like.shape[2] // size, like.shape[3] // size
        tokens = tokens[:, : rows * columns]
        return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=size, q=size)

    def compute_on_cpu(self, onednn: bool) -> None:
        """Have the experts come one by one, and all float32 products be oneDNN's (`matmul.py`); not for training."""
        for module in self.modules():
            if isinstance(module, MixtureOfExperts):
                module.apart = True
            if isinstance(module, Linear | Gate | Attention):
                module.product = matmul.onednn if onednn else matmul.plain
            if isinstance(module, SwiGLU):
                module.fused = onednn

    def lay(self, laid: bool = True) -> None:
        """Keep a copy of each block's matrices as oneDNN reads them, or none; float32 or bfloat16 on a CPU."""
        for block in self.blocks:
            for module in block.modules():
                if isinstance(module, Linear | Attention):
                    module.lay(laid)

    def pack(self) -> None:
        """Lay weights that share an input side by side (`pack.py`); call it last, after any move or cast."""
        for block in self.blocks:
            block.pack()


def norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis, without parameters."""
    return F.layer_norm(x, (x.shape[-1],), eps=LAYER_NORM_EPS)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x·(1 + scale) + shift, with x [S, N, D], scale and shift [S, 1, D]."""
    return torch.addcmul(shift, x, 1 + scale)


def masked(k: Tensor, mask: Tensor | None) -> Tensor:
    """Set pad tokens' keys to 0, in padded mode; k [T, H, K], mask [T, 1, 1]."""
    return k if mask is None else k * mask


def sinusoid(timestep: Tensor) -> Tensor:
    """Times [B] to [B, 256], cosines first, float32 (diffusers' Timesteps with flip_sin_to_cos, no shift)."""
    half = TIME_CHANNELS // 2
    exponent = -math.log(TIME_PERIOD) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * exponent.exp()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _mixture(config: TransformerConfig) -> MixtureOfExperts:
    return MixtureOfExperts(config.dim, 4 * config.dim, config.num_routed_experts, config.num_activated_experts)
