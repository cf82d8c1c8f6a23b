"""The HiDream-I1 transformer: a noisy latent, a time and a prompt to a velocity.

Shapes: B segments of a request, S segments in all, T rows (tokens of all of them), L text tokens of one encoder,
D width, C latent channels, h × w the grid of tokens; see `ragged_batch.py`.

    img        [T, D]    image tokens (in padded mode one more: the reference's pad token, see below)
    txt        [T, D]    running text tokens: of each segment T5, then Llama's last projection
    block_txt  [T, D]    per-block text tokens: one Llama layer's, attended to in that block only
    vec        [B, D]    silu(time + pooled CLIP), from which every block's modulation is made
    mod        [S, k·D]  one block's shifts, scales and gates for one step

Double blocks attend jointly over (img, txt, block_txt) with separate weights for image and text, single blocks with the
same weights for all. What the reference computes and discards (queries and feed-forward of the per-block text tokens,
the last block's text) is not computed here.

What does not change from step to step (projections, rotary table, normalised per-block text tokens) is computed once
per request by `condition`. `batch` lays out the requests that step together. `velocity` then is one step of all of
them. The modulations depend on the step's time only: `modulation` computes those of one step, `modulations` those of
all steps of a request, with one matrix product per block; they take a seventh of the weights, which then need not be on
the device during the steps. `forward` is all of it in one call.

Padded mode repeats what the reference does with latents that are not square: it pads them to `max_tokens` tokens whose
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

from hidream.model.network.attention import Attention, rope_table, rotate
from hidream.model.network.config import TransformerConfig
from hidream.model.network.kernels import DEFAULT, Kernels
from hidream.model.network.linear import NO_ADAPTERS, NO_DELTAS, Linear, LoraDeltas, RowAdapters, all_rows
from hidream.model.network.moe import Gate, MixtureOfExperts, SwiGLU
from hidream.model.network.ragged_batch import Conditioning, RaggedBatch

LAYER_NORM_EPS = 1e-6
TIME_CHANNELS = 256
TIME_PERIOD = 10_000.0


class LayerStreams(NamedTuple):
    """Iterables of the modules that may be streamed from host memory (`streaming.py`), in the order of their use."""

    blocks: Iterable[DoubleBlock | SingleBlock]
    modulations: Iterable[DoubleBlock | SingleBlock]  # the same blocks, for the layer that modulates them
    captions: Iterable[nn.Module]  # the caption projections


class DoubleBlock(nn.Module):
    """Image and text with weights of their own; a mixture of experts for the image, a plain SwiGLU for the text."""

    def __init__(self, config: TransformerConfig, kernels: Kernels) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.dim, 12 * config.dim, matmul=kernels.matmul))
        self.attn1 = Attention(config.dim, config.num_attention_heads, kernels, double=True)
        self.ff_i = _mixture(config, kernels)
        self.ff_t = SwiGLU(config.dim, 4 * config.dim, kernels)

    def forward(
        self, img: Tensor, txt: Tensor, block_txt: Tensor, mod: Tensor, batch: RaggedBatch
    ) -> tuple[Tensor, Tensor]:
        """Return the next img and txt."""
        shift_i, scale_i, gate_i, shift_mlp_i, scale_mlp_i, gate_mlp_i, *text = mod.chunk(12, dim=-1)
        shift_t, scale_t, gate_t, shift_mlp_t, scale_mlp_t, gate_mlp_t = text
        in_img, in_txt = batch.img.adapters, batch.txt.adapters

        q_i, k_i, v_i = self.attn1.qkv(batch.img.each(modulate, norm(img), scale_i, shift_i), "", in_img)
        q_t, k_t, v_t = self.attn1.qkv(batch.txt.each(modulate, norm(txt), scale_t, shift_t), "_t", in_txt)
        k_b, v_b = self.attn1.kv(
            batch.block_txt.each(modulate, block_txt, scale_t, shift_t), "_t", batch.block_txt.adapters
        )
        q_i, k_i = rotate(q_i, batch.rope_img), masked(rotate(k_i, batch.rope_img), batch.key_mask)
        streams = (batch.img, batch.txt, batch.block_txt)
        attended_i, attended_t = batch.attend_within_segments(
            (q_i, q_t), (k_i, k_t, k_b), (v_i, v_t, v_b), streams[:2], streams
        )

        img = batch.img.add(img, gate_i, self.attn1.out(attended_i, "", in_img))
        txt = batch.txt.add(txt, gate_t, self.attn1.out(attended_t, "_t", in_txt))
        img = batch.img.add(
            img, gate_mlp_i, self.ff_i(batch.img.each(modulate, norm(img), scale_mlp_i, shift_mlp_i), in_img)
        )
        txt = batch.txt.add(
            txt, gate_mlp_t, self.ff_t(batch.txt.each(modulate, norm(txt), scale_mlp_t, shift_mlp_t), in_txt)
        )
        return img, txt

    def fuse(self) -> None:
        """Fuse weights that share an input."""
        self.attn1.fuse()
        self.ff_i.fuse()
        self.ff_t.fuse()


class SingleBlock(nn.Module):
    """Image and text in one sequence, with the same weights and the same mixture of experts."""

    def __init__(self, config: TransformerConfig, kernels: Kernels) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.dim, 6 * config.dim, matmul=kernels.matmul))
        self.attn1 = Attention(config.dim, config.num_attention_heads, kernels, double=False)
        self.ff_i = _mixture(config, kernels)

    def forward(self, x: Tensor, block_txt: Tensor, mod: Tensor, batch: RaggedBatch, last: bool) -> Tensor:
        """Return the next x = (img, txt) of each segment; of the last block only img."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = mod.chunk(6, dim=-1)
        adapters = batch.both.adapters

        normed = batch.both.each(modulate, norm(x), scale, shift)
        k_b, v_b = self.attn1.kv(batch.block_txt.each(modulate, block_txt, scale, shift), "", batch.block_txt.adapters)
        if last:
            q, (k, v) = self.attn1.q(batch.images(normed), batch.img.adapters), self.attn1.kv(normed, "", adapters)
            x, rope, rows = batch.images(x), batch.rope_img, batch.img
        else:
            q, k, v = self.attn1.qkv(normed, "", adapters)
            rope, rows = batch.rope_both, batch.both
        k = masked(rotate(k, batch.rope_both), batch.key_mask_both)
        (attended,) = batch.attend_within_segments(
            (rotate(q, rope),), (k, k_b), (v, v_b), (rows,), (batch.both, batch.block_txt)
        )

        x = rows.add(x, gate, self.attn1.out(attended, "", rows.adapters))
        return rows.add(x, gate_mlp, self.ff_i(rows.each(modulate, norm(x), scale_mlp, shift_mlp), rows.adapters))

    def fuse(self) -> None:
        """Fuse weights that share an input."""
        self.attn1.fuse()
        self.ff_i.fuse()


class FinalLayer(nn.Module):
    """Image tokens to patches of the output; here the order of the modulation is shift, scale."""

    def __init__(self, config: TransformerConfig, kernels: Kernels) -> None:
        super().__init__()
        self.linear = Linear(config.dim, config.patch_size**2 * config.out_channels, matmul=kernels.matmul)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.dim, 2 * config.dim, matmul=kernels.matmul))

    def forward(self, img: Tensor, mod: Tensor, batch: RaggedBatch) -> Tensor:
        """[T, D] to [T, p·p·C]."""
        shift, scale = mod.chunk(2, dim=-1)
        return self.linear(batch.img.each(modulate, norm(img), scale, shift), batch.img.adapters)


class Embedder(nn.Module):
    """Two linear layers with a SiLU between, for the time and for the pooled text."""

    def __init__(self, inner: int, dim: int, kernels: Kernels) -> None:
        super().__init__()
        self.linear_1 = Linear(inner, dim, matmul=kernels.matmul)
        self.linear_2 = Linear(dim, dim, matmul=kernels.matmul)

    def forward(self, x: Tensor, adapters: RowAdapters = NO_ADAPTERS) -> Tensor:
        """[B, inner] to [B, D]."""
        return self.linear_2(F.silu(self.linear_1(x, adapters)), adapters)


class Transformer(nn.Module):
    """HiDreamImageTransformer2DModel, with the published parameter names, computed as `kernels` has it."""

    def __init__(self, config: TransformerConfig, kernels: Kernels = DEFAULT) -> None:
        super().__init__()
        self.config, self.kernels = config, kernels
        t5, llama = config.caption_channels
        widths = [llama] * (config.num_layers + config.num_single_layers) + [t5]
        self.t_embedder = nn.ModuleDict({"timestep_embedder": Embedder(TIME_CHANNELS, config.dim, kernels)})
        self.p_embedder = nn.ModuleDict({"pooled_embedder": Embedder(config.text_emb_dim, config.dim, kernels)})
        patch = config.in_channels * config.patch_size**2
        self.x_embedder = nn.ModuleDict({"proj": Linear(patch, config.dim, matmul=kernels.matmul)})
        self.double_stream_blocks = nn.ModuleList(
            nn.ModuleDict({"block": DoubleBlock(config, kernels)}) for _ in range(config.num_layers)
        )
        self.single_stream_blocks = nn.ModuleList(
            nn.ModuleDict({"block": SingleBlock(config, kernels)}) for _ in range(config.num_single_layers)
        )
        self.final_layer = FinalLayer(config, kernels)
        self.caption_projection = nn.ModuleList(
            nn.ModuleDict({"linear": Linear(width, config.dim, bias=False, matmul=kernels.matmul)}) for width in widths
        )
        for name, module in self.named_modules():
            if isinstance(module, Linear | Gate):
                module.published = name
        self.streams = LayerStreams(self.blocks, self.blocks, self.caption_projection)

    def batch(self, conditionings: Sequence[Conditioning]) -> RaggedBatch:
        """Batch the requests that step together, for `velocity`; for compiled blocks so that they are one graph."""
        has_deltas = any(c.deltas for c in conditionings)  # each set of LoRAs would be a graph of its own
        return RaggedBatch.of(conditionings, indexed=self.kernels.compiled and not has_deltas)

    def prepare_weights(self) -> None:
        """Fuse and prepack the blocks' weights as `kernels` has it, once they have their place and type."""
        for block in self.blocks:
            if self.kernels.fused:
                block.fuse()
            if self.kernels.prepacked:
                for module in block.modules():
                    if isinstance(module, Linear | Attention):
                        module.prepack()

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Have torch.compile make one graph of each kind of block, for any mix of requests.

        The first steps then take minutes. Weights must stay where they are: every place would be a new graph.
        """
        assert self.kernels.compiled, "the kernels are not those of compiled blocks"
        for block in self.blocks:
            block.compile(fullgraph=True, dynamic=True, backend=backend)

    def copy_with(self, kernels: Kernels, dtype: torch.dtype | None = None) -> Transformer:
        """Copy with other kernels and perhaps another type, for inference; weights of that type are shared.

        Not for quantised weights.
        """
        with torch.device("meta"):
            copy = Transformer(self.config, kernels)
        copy.load_state_dict({name: p.to(dtype or p.dtype) for name, p in self.state_dict().items()}, assign=True)
        copy.prepare_weights()
        return copy.eval().requires_grad_(False)

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
        deltas: LoraDeltas = NO_DELTAS,
    ) -> Conditioning:
        """Compute what every step needs of a prompt, for `velocity`.

        t5 [B, L, D_T5]; llama [layers, B, L, D_Llama], the hidden states without the embedding's; pooled [B, 2048],
        both CLIPs'; grid (h, w) in tokens. `padded` repeats the reference's padding of shapes that are not square.
        """
        adapters = all_rows(deltas)
        embeds = [*(llama[layer] for layer in self.config.llama_layers), t5]
        captions = [module["linear"](x, adapters) for module, x in zip(self.streams.captions, embeds, strict=True)]  # type: ignore[index]
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
        vec = self.p_embedder["pooled_embedder"](pooled, adapters)
        block_txt = torch.stack([norm(caption) for caption in captions])
        return Conditioning(txt, block_txt, vec, rope, key_mask, bias, deltas)

    def modulation(self, timestep: Tensor, c: Conditioning) -> Tensor:
        """Compute the modulation of a step at timestep [B], 0 to 1000: every block's and the final layer's, [B, M]."""
        return self._modulate(timestep, c.pooled, all_rows(c.deltas))

    def modulations(self, timesteps: Sequence[float], c: Conditioning) -> list[Tensor]:
        """Compute the modulations of all steps of a request, with one matrix product per block.

        One step of the published model takes 2 MB (bf16), the 28 steps of Dev 55 MB; the weights that make them 5 GB.
        """
        batch, steps = c.pooled.shape[0], len(timesteps)
        times = torch.tensor(timesteps, device=c.pooled.device).repeat_interleave(batch)
        return list(self._modulate(times, c.pooled.repeat(steps, 1), all_rows(c.deltas)).split(batch))

    def _modulate(self, timestep: Tensor, pooled: Tensor, adapters: RowAdapters) -> Tensor:
        time = sinusoid(timestep).to(pooled.dtype)
        vec = F.silu(self.t_embedder["timestep_embedder"](time, adapters) + pooled)
        mods = [block.adaLN_modulation[1](vec, adapters) for block in self.streams.modulations]
        return torch.cat((*mods, self.final_layer.adaLN_modulation[1](vec, adapters)), dim=-1)

    def velocity_at(self, latent: Tensor, timestep: Tensor, c: Conditioning) -> Tensor:
        """One step of one request at timestep [B], with its modulation made on the spot."""
        return self.velocity([latent], [self.modulation(timestep, c)], self.batch([c]))[0]

    def velocity(self, latents: Sequence[Tensor], modulations: Sequence[Tensor], batch: RaggedBatch) -> list[Tensor]:
        """One step of each request: latents [B, C, H, W] and modulations [B, M] to velocities, noise − image.

        The requests are those of `RaggedBatch.of`, in the same order; the velocities are [B, C, H, W].
        """
        mods = self._split_modulation(batch.modulation(modulations))
        img = self.x_embedder["proj"](batch.in_batch_order([self._patchify(x) for x in latents]), batch.img.adapters)

        txt, doubles, last = batch.txt_tokens, len(self.double_stream_blocks), len(mods) - 2
        x = img
        for i, block in enumerate(self.streams.blocks):
            if isinstance(block, DoubleBlock):
                img, txt = self._computing(block, batch)(img, txt, batch.block_txt_tokens[i], mods[i], batch)
                continue
            if i == doubles:
                x = batch.join_streams(img, txt)
            x = self._computing(block, batch)(x, batch.block_txt_tokens[i], mods[i], batch, i == last)

        # the published weights predict image − noise
        out = -self.final_layer(x, mods[-1], batch)
        return [self._unpatchify(part, x) for part, x in zip(batch.unbatch(out), latents, strict=True)]

    def _computing(self, block: DoubleBlock | SingleBlock, batch: RaggedBatch) -> Callable[..., Any]:
        """Return a block as it is compiled, if it is, but for batches that would make a new graph."""
        return block.forward if self.kernels.compiled and batch.image_rows is None else block

    def _split_modulation(self, modulation: Tensor) -> list[Tensor]:
        """[S, M] to each block's [S, k·D], and the final layer's."""
        d, doubles, singles = self.config.dim, len(self.double_stream_blocks), len(self.single_stream_blocks)
        return list(modulation.split([12 * d] * doubles + [6 * d] * singles + [2 * d], dim=-1))

    def _patchify(self, latent: Tensor) -> Tensor:
        """Latent [B, C, H, W] to tokens [B, N, p·p·C]."""
        size = self.config.patch_size
        return rearrange(latent, "b c (h p) (w q) -> b (h w) (p q c)", p=size, q=size)

    def _unpatchify(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Tokens [B, N, p·p·C] to a latent; a further token is the pad token."""
        size = self.config.patch_size
        rows, columns = like.shape[2] // size, like.shape[3] // size
        tokens = tokens[:, : rows * columns]
        return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=size, q=size)


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


def _mixture(config: TransformerConfig, kernels: Kernels) -> MixtureOfExperts:
    experts, active = config.num_routed_experts, config.num_activated_experts
    return MixtureOfExperts(config.dim, 4 * config.dim, experts, active, kernels)
