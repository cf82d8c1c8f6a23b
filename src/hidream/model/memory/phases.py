"""Carries out a memory plan (`plan.py`): lets the parts of a model that live in host memory visit the device in time.

The loader has put every part where it lives; here is when it moves. A phase of a picture is a context: what visits the
device for it comes at its beginning, or block by block, and has left at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from hidream.model.latents.autoencoder import Autoencoder
from hidream.model.memory.offload import visiting
from hidream.model.memory.streaming import Stream
from hidream.model.network.transformer import DoubleBlock, SingleBlock, Transformer, Walks

Phase = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Phases:
    """What has to be around the phases of a picture; by default nothing, because everything is where it computes."""

    denoising: Phase = nullcontext
    autoencoding: Phase = nullcontext


def blocks_in_turn(transformer: Transformer, device: torch.device) -> Phase:
    """All blocks on the device while it denoises."""
    bodies = nn.ModuleList(part for block in transformer.blocks for part in body(block))
    return lambda: visiting(bodies, device)


def blocks_streamed(transformer: Transformer, device: torch.device, staying: Sequence[int]) -> Phase:
    """Blocks on the device one by one, in each step; those that are `staying` as long as it denoises."""
    stream = Stream(transformer.blocks, device, body, staying)
    transformer.walks = transformer.walks._replace(blocks=stream)

    @contextmanager
    def denoising() -> Iterator[None]:
        try:
            yield
        finally:
            stream.leave()

    return denoising


def conditioning_streamed(transformer: Transformer, device: torch.device) -> None:
    """What makes captions and modulations on the device layer by layer, once for each picture."""
    tables = Stream(transformer.blocks, device, lambda block: (block.adaLN_modulation,))
    captions = Stream(transformer.caption_projection, device)
    transformer.walks = Walks(transformer.walks.blocks, tables, captions)


def autoencoder_in_turn(vae: Autoencoder, device: torch.device) -> Phase:
    """The autoencoder on the device while it encodes or decodes."""
    return lambda: visiting(vae.module, device)


def body(block: DoubleBlock | SingleBlock) -> list[nn.Module]:
    """What of a block is needed in each step: all but the layer that modulates it."""
    return [module for name, module in block.named_children() if name != "adaLN_modulation"]
