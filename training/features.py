"""What the transformer thinks of an image on the way: its image tokens after every block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from hidream.model.network.transformer import Transformer


@contextmanager
def image_tokens(transformer: Transformer, batch: int, tokens: int) -> Iterator[list[Tensor]]:
    """Collect, within, the image tokens [B, N, D] after every block of one request of `batch` × `tokens` of them."""
    found: list[Tensor] = []

    def note(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
        rows = output[0] if isinstance(output, tuple) else output
        found.append(rows.unflatten(0, (batch, -1))[:, :tokens])

    hooks = [block.register_forward_hook(note) for block in transformer.blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
