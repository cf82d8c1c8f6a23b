"""Computes what the scheduler has chosen: prompts of new requests, one step of many, and finished images.

Holds the tensors of every admitted request and no others. Knows no order and no queue. Text encoding and decoding can
run in the background, on a thread and a CUDA stream of their own, while the next steps are computed. Where they would
only compete with the steps, as on a CPU, they run at once.
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
from hidream.model.memory.footprint import conditioning_bytes, decode_bytes, step_bytes, table_bytes
from hidream.model.model import Model
from hidream.model.network.ragged_batch import RaggedBatch
from hidream.model.network.transformer import Transformer
from hidream.model.pipeline import (
    AfterStep,
    Denoising,
    GeneratedImage,
    ModelEvaluation,
    PreparedRequest,
    denoise,
    finish,
    now,
    resume,
)
from hidream.model.text.text_encoders import Encoded
from hidream.types import Timings

T = TypeVar("T")

LATENTS = 8
"""Latents that a request holds at most: x, noise, the history of the sampler and the step cache, an init image."""


@dataclass(slots=True, eq=False)
class _Running:
    """A request between two steps, and the seconds that it has taken."""

    prepared: PreparedRequest
    denoising: Denoising
    evaluation: ModelEvaluation  # the next one
    warnings: tuple[str, ...]
    text_s: float
    denoise_s: float = 0.0


class Runner:
    """The admitted requests of one model, for one thread.

    `overlap` runs text encoding and decoding in the background. Without `together`, the requests of a step are computed
    one after the other. `encoding` is held while texts are encoded.
    """

    def __init__(self, model: Model, overlap: bool, together: bool, encoding: Lock) -> None:
        self._model = model
        self._running: dict[str, _Running] = {}
        self._batches: dict[Transformer, tuple[list[int], RaggedBatch]] = {}
        self._denoising, self._is_denoising = ExitStack(), False
        self._overlap, self._encoding, self._together = overlap, encoding, together
        self._background: Executor = ThreadPoolExecutor(1, "background") if overlap else _ImmediateExecutor()
        self._stream = torch.cuda.Stream(model.device) if overlap and model.device.type == "cuda" else None

    def work(self, id: str, prepared: PreparedRequest, priority: int = 0) -> Work:  # noqa: A002 - what it is
        """Return a request's tokens per step and the memory that it holds, for the scheduler."""
        config, batch = self._model.transformer.config, len(prepared.prompts)
        steps, memory_bytes, size = [], prepared.lora_bytes, self._model.dtype.itemsize
        for each in prepared.passes:
            tokens = segment_tokens(each.grid.rows * each.grid.columns, self._model.text.tokens)
            steps += [batch * tokens] * sum(each.evaluated)
            latent = each.grid.rows * each.grid.columns * config.patch_size**2 * config.in_channels * 4
            tables = table_bytes(config, batch, sum(each.evaluated), size)
            memory_bytes += conditioning_bytes(config, batch, size) + tables + LATENTS * latent
        if prepared.init_image is not None and self._model.device.type == "cpu":  # elsewhere it stays in host memory
            memory_bytes += prepared.init_image.nbytes
        return Work(id, tuple(steps), memory_bytes, priority)

    def peak_bytes(self, prepared: PreparedRequest) -> int:
        """Return the working memory of a request's largest step, alone, or of its decoding, whichever is more."""
        model, vae = self._model, self._model.vae
        tokens = max(each.grid.rows * each.grid.columns for each in prepared.passes)
        step = step_bytes(
            model.transformer.config,
            tokens,
            len(prepared.prompts),
            model.dtype.itemsize,
            fused=True,
            adapted=bool(prepared.request.loras),
            per_expert=model.device.type == "cpu",
        )
        last = prepared.passes[-1].grid
        pixels = last.rows * last.columns * model.token_px**2
        decoded = min(pixels, vae.tile_px**2) if vae.tile_px else pixels
        decode = decode_bytes(vae.module.widest, decoded, vae.dtype.itemsize)
        return max(step, decode)

    def expect(self, prepared: PreparedRequest) -> None:
        """Encode the prompts of a waiting request in the background, so that they are in the cache when it begins."""
        if self._overlap:
            self._background.submit(self._in_background, self._embed, prepared)

    def begin(self, requests: Mapping[str, tuple[PreparedRequest, AfterStep]]) -> dict[str, Exception]:
        """Encode the prompts of new requests and start to denoise them; return the errors of those that failed."""
        if not requests:
            return {}
        self.release_device()
        if len(requests) > 1 and self._model.text.cache is not None:  # all at once; each then reads the cache
            with suppress(Exception):  # the loop below finds out which request is to blame
                self._embed(*(prepared for prepared, _ in requests.values()))
        failed: dict[str, Exception] = {}
        for id_, (prepared, after_step) in requests.items():
            try:
                started = now(self._model.device)
                text = self._embed(prepared)
                text_s = now(self._model.device) - started
                denoising = denoise(self._model, prepared, text.embeds, after_step)
                first = next(denoising)
                denoise_s = now(self._model.device) - started - text_s
                warnings = prepared.warnings + text.warnings
                self._running[id_] = _Running(prepared, denoising, first, warnings, text_s, denoise_s)
            except Exception as error:  # the edge of a request: the others go on
                failed[id_] = error
        return failed

    def step(self, ids: Sequence[str]) -> tuple[dict[str, Future[GeneratedImage]], dict[str, Exception]]:
        """Take one step of these requests; return the images of those that it has finished, and the errors."""
        if not self._is_denoising:
            self._denoising.enter_context(self._model.phases.denoising())
            self._is_denoising = True
        started = now(self._model.device)
        velocities, failed = self._velocities(ids)
        latents: dict[str, Tensor] = {}
        for id_, velocity in velocities.items():
            try:
                following = resume(self._running[id_].denoising, velocity)
            except Exception as error:  # the edge of a request: the others go on
                failed[id_] = error
                continue
            if isinstance(following, ModelEvaluation):
                self._running[id_].evaluation = following
            else:
                latents[id_] = following
        seconds = now(self._model.device) - started
        rows = {id_: self._running[id_].evaluation.latent.numel() for id_ in ids}
        for id_ in ids:
            self._running[id_].denoise_s += seconds * rows[id_] / sum(rows.values())
        for id_ in failed:
            self.drop(id_)
        return {id_: self._finish(id_, latent) for id_, latent in latents.items()}, failed

    def drop(self, id: str) -> None:  # noqa: A002 - what it is
        """Forget a request, if it is here, and free what it holds."""
        running = self._running.pop(id, None)
        if running is not None:
            running.denoising.close()
            self._batches.clear()

    def release_device(self) -> None:
        """Leave the denoising phase, until the next step."""
        self._denoising.close()
        self._is_denoising = False

    def close(self) -> None:
        """Drop all requests and end the background thread."""
        for id_ in list(self._running):
            self.drop(id_)
        self.release_device()
        self._background.shutdown()

    def _velocities(self, ids: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Exception]]:
        """Compute the velocities of a step: one batch for each transformer, of which the modes may use two."""
        computed: dict[str, Tensor] = {}
        failed: dict[str, Exception] = {}
        for transformer in dict.fromkeys(self._running[id_].evaluation.transformer for id_ in ids):
            own = [id_ for id_ in ids if self._running[id_].evaluation.transformer is transformer]
            dtype = self._running[own[0]].evaluation.latent.dtype
            together = self._together and transformer.kernels.keep_bits_in_batch(dtype)
            compute = self._batched if together else self._one_by_one
            velocities, errors = compute(transformer, own)
            computed |= velocities
            failed |= errors
        return computed, failed

    def _batched(self, transformer: Transformer, ids: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Exception]]:
        """Compute one batch; if that fails, each request by itself, to find out which one is to blame."""
        evaluations = [self._running[id_].evaluation for id_ in ids]
        try:
            batch = self._batch(transformer, evaluations)
            latents, modulations = [e.latent for e in evaluations], [e.modulation for e in evaluations]
            velocities = transformer.velocity(latents, modulations, batch)
        except Exception as error:  # the edge of a request: the others go on
            return self._one_by_one(transformer, ids) if len(ids) > 1 else ({}, {ids[0]: error})
        return dict(zip(ids, velocities, strict=True)), {}

    def _one_by_one(
        self, transformer: Transformer, ids: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Exception]]:
        parts = [self._batched(transformer, [id_]) for id_ in ids]
        return {k: v for part, _ in parts for k, v in part.items()}, {k: e for _, f in parts for k, e in f.items()}

    def _batch(self, transformer: Transformer, evaluations: Sequence[ModelEvaluation]) -> RaggedBatch:
        """Lay out the rows of a batch; once, as long as its requests stay the same."""
        names = [id(evaluation.conditioning) for evaluation in evaluations]
        if transformer not in self._batches or self._batches[transformer][0] != names:
            self._batches[transformer] = names, transformer.batch([e.conditioning for e in evaluations])
        return self._batches[transformer][1]

    def _finish(self, id_: str, latent: Tensor) -> Future[GeneratedImage]:
        """Decode an image, in the background if there is one; what only its steps needed is free by then."""
        running = self._running[id_]
        prepared, warnings = running.prepared, running.warnings
        text_s, denoise_s = running.text_s, running.denoise_s
        del running
        self.drop(id_)
        self.release_device()
        ready = None if self._stream is None else torch.cuda.current_stream(self._model.device).record_event()

        def decode() -> GeneratedImage:
            if self._stream is not None and ready is not None:
                self._stream.wait_event(ready)
                latent.record_stream(self._stream)  # its memory is not reused while it is read here
            started = time.perf_counter()
            pixels = finish(self._model, prepared, latent)  # ends with a copy to the host, which waits
            timings = Timings(text_s, denoise_s, time.perf_counter() - started)
            return GeneratedImage(pixels, timings, warnings)

        return self._background.submit(self._in_background, decode)

    def _embed(self, *requests: PreparedRequest) -> Encoded:
        """Encode the prompts of requests; encoders and tokenizers are for one thread at a time."""
        with self._encoding:
            return self._model.text.embed([prompt for prepared in requests for prompt in prepared.prompts])

    def _in_background(self, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - whatever it takes
        """Call `function` without gradients, on the background stream."""
        with torch.inference_mode(), nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            return function(*arguments)


class _ImmediateExecutor(Executor):
    """Runs what is submitted at once, on the thread that submits it."""

    def submit(self, function: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:  # noqa: ANN401
        """Run `function` and return a future that is done."""
        future: Future[T] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:  # the edge of a request: the future carries the error
            future.set_exception(error)
        return future


def segment_tokens(image_tokens: int, text_tokens: int) -> int:
    """Rows of a segment in a step: its image tokens, two running texts, and one block's own text tokens."""
    return image_tokens + 3 * text_tokens
