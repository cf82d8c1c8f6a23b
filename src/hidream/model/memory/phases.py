"""Offload hooks: when the parts of a model that live in host memory are on the device.

The loader has put every part where the plan (`plan.py`) has it. Each phase of a generation is a context: offloaded
weights are copied to the device when it begins, or block by block, and dropped there when it ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from hidream.model.latents.autoencoder import Autoencoder
from hidream.model.memory.candidates import Placement
from hidream.model.memory.footprint import BLOCKS, MODULATIONS, VAE
from hidream.model.memory.offload import on_device
from hidream.model.memory.plan import Plan
from hidream.model.memory.streaming import LayerStream
from hidream.model.network.transformer import DoubleBlock, LayerStreams, SingleBlock, Transformer

Phase = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Phases:
    """The contexts of the phases of a generation; by default none, because all weights are where they compute."""

    denoising: Phase = nullcontext
    autoencoding: Phase = nullcontext


def offloaded(plan: Plan, transformer: Transformer, vae: Autoencoder, device: torch.device) -> Phases:
    """Attach the offload hooks of what a plan has in host memory."""
    phases = Phases()
    if plan.part(MODULATIONS).placement is Placement.STREAMED:
        stream_conditioning(transformer, device)
    if plan.part(BLOCKS).placement is Placement.STREAMED:
        phases = dataclasses.replace(phases, denoising=stream_blocks(transformer, device, plan.resident))
    elif plan.part(BLOCKS).placement is Placement.SEQUENTIAL:
        phases = dataclasses.replace(phases, denoising=offload_blocks(transformer, device))
    if plan.part(VAE).placement is Placement.SEQUENTIAL:
        phases = dataclasses.replace(phases, autoencoding=offload_autoencoder(vae, device))
    return phases


def offload_blocks(transformer: Transformer, device: torch.device) -> Phase:
    """Sequential offload of the blocks: all of them are on the device during denoising."""
    bodies = nn.ModuleList(part for block in transformer.blocks for part in body(block))
    return lambda: on_device(bodies, device)


def stream_blocks(transformer: Transformer, device: torch.device, resident: Sequence[int]) -> Phase:
    """Stream the blocks in each step; the `resident` ones stay on the device during denoising."""
    stream = LayerStream(transformer.blocks, device, body, resident)
    transformer.streams = transformer.streams._replace(blocks=stream)

    @contextmanager
    def denoising() -> Iterator[None]:
        try:
            yield
        finally:
            stream.release()

    return denoising


def stream_conditioning(transformer: Transformer, device: torch.device) -> None:
    """Stream the layers that compute captions and modulations, once for each image."""
    tables = LayerStream(transformer.blocks, device, lambda block: (block.adaLN_modulation,))
    captions = LayerStream(transformer.caption_projection, device)
    transformer.streams = LayerStreams(transformer.streams.blocks, tables, captions)


def offload_autoencoder(vae: Autoencoder, device: torch.device) -> Phase:
    """Sequential offload of the autoencoder: it is on the device while it encodes or decodes."""
    return lambda: on_device(vae.module, device)


def body(block: DoubleBlock | SingleBlock) -> list[nn.Module]:
    """Return the modules of a block that each step needs: all but the layer that modulates it."""
    return [module for name, module in block.named_children() if name != "adaLN_modulation"]
