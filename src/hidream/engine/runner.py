"""Computes what the scheduler has chosen: the texts of those who begin, one step of many drawings, finished pictures.

Holds the tensors of every request that was admitted and no other. Knows no order and no queue. Text encoding and
decoding can go on aside, on a thread and a CUDA stream of their own, while the next steps are computed; where they
would only take turns with them, as on a CPU, they are done at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from hidream.engine.request import Work
from hidream.model.memory.footprint import conditioning_bytes, decode_bytes, decoder_channels, step_bytes, table_bytes
from hidream.model.model import Model
from hidream.model.network.lora import changes_bytes
from hidream.model.network.ragged_batch import Packed
from hidream.model.network.transformer import Transformer
from hidream.model.pipeline import Ask, Drawing, Picture, Sketch, Tick, answer, draw, finish, now
from hidream.model.text.text_encoders import Encoded
from hidream.types import Timings

T = TypeVar("T")

LATENTS = 8
"""Latents that a request holds at most: x, noise, what the sampler and the step cache remember, a canvas."""


@dataclass(slots=True, eq=False)
class _Open:
    """A drawing between two steps, and the seconds that went into it."""

    sketch: Sketch
    drawing: Drawing
    ask: Ask
    warnings: tuple[str, ...]
    text_s: float
    denoise_s: float = 0.0


class Runner:
    """One model's drawings, for one thread.

    `overlap` lets texts and decoding go on aside; without `together` a step computes one drawing after the other.
    `encoding` is held while texts are encoded.
    """

    def __init__(self, model: Model, overlap: bool, together: bool, encoding: Lock) -> None:
        self._model = model
        self._open: dict[str, _Open] = {}
        self._packed: dict[Transformer, tuple[list[int], Packed]] = {}
        self._denoising, self._is_denoising = ExitStack(), False
        self._overlap, self._encoding, self._together = overlap, encoding, together
        self._aside: Executor = ThreadPoolExecutor(1, "aside") if overlap else _AtOnce()
        self._stream = torch.cuda.Stream(model.device) if overlap and model.device.type == "cuda" else None

    def work(self, id: str, sketch: Sketch, priority: int = 0) -> Work:  # noqa: A002 - what it is
        """Say in numbers what a request takes."""
        config, batch = self._model.transformer.config, len(sketch.prompts)
        steps, memory_bytes, size = [], changes_bytes(sketch.changes), self._model.dtype.itemsize
        for each in sketch.passes:
            tokens = segment_tokens(each.grid.rows * each.grid.columns, self._model.text.tokens)
            steps += [batch * tokens] * sum(each.asked)
            latent = each.grid.rows * each.grid.columns * config.patch_size**2 * config.in_channels * 4
            tables = table_bytes(config, batch, sum(each.asked), size)
            memory_bytes += conditioning_bytes(config, batch, size) + tables + LATENTS * latent
        if sketch.canvas is not None and self._model.device.type == "cpu":  # elsewhere it stays in the host's memory
            memory_bytes += sketch.canvas.nbytes
        return Work(id, tuple(steps), memory_bytes, priority)

    def peak_bytes(self, sketch: Sketch) -> int:
        """Say what its largest step, alone, or its decoding takes while it runs, whichever takes more."""
        model, vae = self._model, self._model.vae
        tokens = max(each.grid.rows * each.grid.columns for each in sketch.passes)
        step = step_bytes(
            model.transformer.config,
            tokens,
            len(sketch.prompts),
            model.dtype.itemsize,
            packed=True,
            adapted=bool(sketch.request.loras),
            apart=model.device.type == "cpu",
        )
        last = sketch.passes[-1].grid
        pixels = last.rows * last.columns * model.token_px**2
        decoded = min(pixels, vae.tile_px**2) if vae.tile_px else pixels
        decode = decode_bytes(decoder_channels(vae.module), decoded, vae.module.dtype.itemsize)
        return max(step, decode)

    def expect(self, sketch: Sketch) -> None:
        """Encode the text of a request that waits, if there is an aside; it is in the cache then when it begins."""
        if self._overlap:
            self._aside.submit(self._beside, self._embed, sketch)

    def begin(self, sketches: Mapping[str, tuple[Sketch, Tick]]) -> dict[str, Exception]:
        """Encode the texts of new requests and start their drawings; return the errors of some."""
        if not sketches:
            return {}
        self.rest()
        if len(sketches) > 1 and self._model.text.cache is not None:  # all at once, each then from the cache
            with suppress(Exception):  # whose it is will be seen below
                self._embed(*(sketch for sketch, _ in sketches.values()))
        failed: dict[str, Exception] = {}
        for id_, (sketch, tick) in sketches.items():
            try:
                started = now(self._model.device)
                text = self._embed(sketch)
                text_s = now(self._model.device) - started
                drawing = draw(self._model, sketch, text.embeds, tick)
                ask = next(drawing)
                denoise_s = now(self._model.device) - started - text_s
                self._open[id_] = _Open(sketch, drawing, ask, sketch.warnings + text.warnings, text_s, denoise_s)
            except Exception as error:  # the edge of a request: the others go on
                failed[id_] = error
        return failed

    def step(self, ids: Sequence[str]) -> tuple[dict[str, Future[Picture]], dict[str, Exception]]:
        """Take one step of these drawings; return the pictures of those that it has finished, and the errors."""
        if not self._is_denoising:
            self._denoising.enter_context(self._model.phases.denoising())
            self._is_denoising = True
        started = now(self._model.device)
        velocities, failed = self._velocities(ids)
        latents: dict[str, Tensor] = {}
        for id_, velocity in velocities.items():
            try:
                said = answer(self._open[id_].drawing, velocity)
            except Exception as error:  # the edge of a request: the others go on
                failed[id_] = error
                continue
            if isinstance(said, Ask):
                self._open[id_].ask = said
            else:
                latents[id_] = said
        seconds = now(self._model.device) - started
        rows = {id_: self._open[id_].ask.latent.numel() for id_ in ids}
        for id_ in ids:
            self._open[id_].denoise_s += seconds * rows[id_] / sum(rows.values())
        for id_ in failed:
            self.drop(id_)
        return {id_: self._finish(id_, latent) for id_, latent in latents.items()}, failed

    def drop(self, id: str) -> None:  # noqa: A002 - what it is
        """Forget a drawing and free what it holds; it may not be here."""
        opened = self._open.pop(id, None)
        if opened is not None:
            opened.drawing.close()
            self._packed.clear()

    def rest(self) -> None:
        """Leave the phase of denoising, until the next step."""
        self._denoising.close()
        self._is_denoising = False

    def close(self) -> None:
        """Give up all drawings and end what goes on aside."""
        for id_ in list(self._open):
            self.drop(id_)
        self.rest()
        self._aside.shutdown()

    def _velocities(self, ids: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Exception]]:
        """Answer all questions to one transformer in one go; the modes may have two."""
        answers: dict[str, Tensor] = {}
        failed: dict[str, Exception] = {}
        for transformer in dict.fromkeys(self._open[id_].ask.transformer for id_ in ids):
            own = [id_ for id_ in ids if self._open[id_].ask.transformer is transformer]
            velocities, errors = (
                self._answers(transformer, own) if self._together else self._one_by_one(transformer, own)
            )
            answers |= velocities
            failed |= errors
        return answers, failed

    def _answers(self, transformer: Transformer, ids: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Exception]]:
        """Answer in one go; if that fails, each by itself, to find out whose fault it is."""
        asks = [self._open[id_].ask for id_ in ids]
        try:
            packed = self._layout(transformer, asks)
            velocities = transformer.velocity([a.latent for a in asks], [a.modulation for a in asks], packed)
        except Exception as error:  # the edge of a request: the others go on
            return self._one_by_one(transformer, ids) if len(ids) > 1 else ({}, {ids[0]: error})
        return dict(zip(ids, velocities, strict=True)), {}

    def _one_by_one(
        self, transformer: Transformer, ids: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Exception]]:
        parts = [self._answers(transformer, [id_]) for id_ in ids]
        return {k: v for part, _ in parts for k, v in part.items()}, {k: e for _, f in parts for k, e in f.items()}

    def _layout(self, transformer: Transformer, asks: Sequence[Ask]) -> Packed:
        """Lay out the rows of a batch; once, as long as it stays the same."""
        names = [id(ask.conditioning) for ask in asks]
        if transformer not in self._packed or self._packed[transformer][0] != names:
            self._packed[transformer] = names, transformer.lay_out([ask.conditioning for ask in asks])
        return self._packed[transformer][1]

    def _finish(self, id_: str, latent: Tensor) -> Future[Picture]:
        """Decode a picture, aside if there is an aside."""
        opened = self._open[id_]
        self.drop(id_)
        self.rest()
        ready = None if self._stream is None else torch.cuda.current_stream(self._model.device).record_event()

        def decode() -> Picture:
            if self._stream is not None and ready is not None:
                self._stream.wait_event(ready)
                latent.record_stream(self._stream)  # its memory is not given away while it is read here
            started = time.perf_counter()
            pixels = finish(self._model, opened.sketch, latent)  # ends with a copy to the host, which waits
            timings = Timings(opened.text_s, opened.denoise_s, time.perf_counter() - started)
            return Picture(pixels, timings, opened.warnings)

        return self._aside.submit(self._beside, decode)

    def _embed(self, *sketches: Sketch) -> Encoded:
        """Encode the prompts of requests; encoders and tokenizers are for one thread at a time."""
        with self._encoding:
            return self._model.text.embed([prompt for sketch in sketches for prompt in sketch.prompts])

    def _beside(self, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - whatever it takes
        """Call `function` without gradients, on the stream of what goes on aside."""
        with torch.inference_mode(), nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            return function(*arguments)


class _AtOnce(Executor):
    """Does what it is given where it is given it."""

    def submit(self, function: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:  # noqa: ANN401
        """Run it now."""
        future: Future[T] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:  # the edge of a request: whoever waits for the result gets it
            future.set_exception(error)
        return future


def segment_tokens(image_tokens: int, text_tokens: int) -> int:
    """Rows that a segment brings into a step: its image, two texts that run along, and one that is looked at."""
    return image_tokens + 3 * text_tokens
