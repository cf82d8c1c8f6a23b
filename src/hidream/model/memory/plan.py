"""The memory plan: where each part of a model lives, in which type, and what that costs; one pure function.

`plan` goes through the placement candidates, from the best to the worst (`candidates.py`), adds up the memory of each
in every phase of a generation (`footprint.py`), and takes the first that fits. It loads nothing and does not look at
the machine: `Hardware` says what there is.

All figures are computed, not measured: the bytes of the weights exactly, working memory as the most that is alive.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hidream.model.latents.shape import Grid, render_grid
from hidream.model.memory import footprint
from hidream.model.memory.candidates import Candidate, Hardware, Options, Placement, candidates
from hidream.model.memory.footprint import BLOCKS, CAPTIONS, ENCODERS, MODULATIONS, REST, VAE, ModelShape, Weights
from hidream.types import Render, WeightFormat

CONTEXT_BYTES = 600_000_000
"""What CUDA itself takes: context, kernels, cuBLAS' and cuDNN's workspaces. An assumption: 0.3 to 0.6 GB are usual."""
SLACK = 1.1
"""Working memory counts this much, for what the allocator rounds up and cannot join. An assumption."""
WINDOW = 2
"""Streamed blocks or matrices on the device at a time: one computes, the next arrives."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the model: what it costs, and where."""

    name: str
    storage: WeightFormat
    placement: Placement
    nbytes: int


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that one phase of an image takes on the device."""

    phase: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class MissedTier:
    """A tier that does not fit, and by how many bytes at least."""

    storage: WeightFormat
    streamed: bool
    short_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan, carried out by `loading.py` and printed by `plan_report.py`."""

    hardware: Hardware
    options: Options
    parts: tuple[Part, ...]
    peaks: tuple[Peak, ...]  # in the order of the phases
    host_bytes: int  # in the host's memory, without the reserve
    resident: tuple[int, ...]  # numbers of the blocks that stay on the device while it denoises
    streamed_bytes: int  # brought to the device in each step
    tile_px: int | None  # side of the tiles for decoding; None decodes whole images
    missed: tuple[MissedTier, ...] = ()  # the better tiers, which do not fit

    def part(self, name: str) -> Part:
        """Find a part by its name."""
        return next(part for part in self.parts if part.name == name)

    @property
    def streaming(self) -> bool:
        """Whether blocks are streamed while it denoises."""
        return self.part(BLOCKS).placement is Placement.STREAMED

    @property
    def peak(self) -> Peak:
        """The phase that takes most."""
        return max(self.peaks, key=lambda peak: peak.nbytes)

    @property
    def fits(self) -> bool:
        """Whether there is enough of everything."""
        return not self.shortfall

    @property
    def shortfall(self) -> int:
        """Bytes that are missing, on the device and in the host's memory."""
        missing = max(self.peak.nbytes - self.hardware.device_budget, 0)
        return missing + (max(self.host_bytes - self.hardware.host_budget, 0) if self.hardware.separate else 0)

    @property
    def moved_bytes(self) -> int:
        """Bytes brought to the device for one image whose prompt is new."""
        once = sum(part.nbytes for part in self.parts if part.placement in (Placement.SEQUENTIAL, Placement.STREAMED))
        return once + self.streamed_bytes * (self.options.steps - 1)


def plan(hardware: Hardware, model: ModelShape, options: Options) -> Plan:
    """Find the best placement on `hardware` for what `options` ask.

    Where nothing fits, the result is what comes nearest: `Plan.fits` is False, and `plan_report.verdict` says what
    would fit. Raises ConfigurationError on a requested weight format that the hardware cannot have.
    """
    inputs = _plan_inputs(hardware, model, options)
    nearest: dict[tuple[WeightFormat, bool], Plan] = {}
    fitting = None
    for candidate in candidates(hardware, options):
        answer = _account(candidate, inputs)
        if answer.fits:
            fitting = answer
            break
        tier = (candidate.storage, candidate.blocks is Placement.STREAMED)
        nearest[tier] = min(nearest.get(tier, answer), answer, key=lambda plan: plan.shortfall)
    best = fitting or min(nearest.values(), key=lambda plan: plan.shortfall)
    missed = tuple(
        MissedTier(storage, streamed, miss.shortfall)
        for (storage, streamed), miss in nearest.items()
        if fitting is None or (storage, streamed) != (best.part(BLOCKS).storage, best.streaming)
    )
    return dataclasses.replace(best, missed=missed)


@dataclass(frozen=True, slots=True)
class _PlanInputs:
    """What is the same for every candidate."""

    hardware: Hardware
    model: ModelShape
    options: Options
    grid: Grid
    batch: int
    weights: dict[str, Weights]
    blocks: list[Weights]
    kept: int  # bytes of conditioning and modulation tables, which last from the first step to the end

    @property
    def c(self) -> int:
        """Bytes of the compute type."""
        return self.options.compute_bytes or self.hardware.compute_bytes

    @property
    def vae_c(self) -> int:
        """Bytes of the type that the autoencoder computes in."""
        return self.options.decode_bytes or self.c

    @property
    def tokens(self) -> int:
        return self.grid.rows * self.grid.columns + (self.options.render is Render.REFERENCE)

    @property
    def pixels(self) -> int:
        return self.grid.rows * self.grid.columns * self.model.token_px**2


def _plan_inputs(hardware: Hardware, model: ModelShape, options: Options) -> _PlanInputs:
    config, batch = model.transformer, 2 if options.guided else 1
    c = options.compute_bytes or hardware.compute_bytes
    return _PlanInputs(
        hardware=hardware,
        model=model,
        options=options,
        grid=render_grid(options.size, options.render, model.token_px, config.max_tokens, config.max_tokens),
        batch=batch,
        weights=footprint.transformer_weights(config),
        blocks=footprint.block_weights(config),
        kept=footprint.conditioning_bytes(config, batch, c) + footprint.table_bytes(config, batch, options.steps, c),
    )


def _account(candidate: Candidate, inputs: _PlanInputs) -> Plan:
    """Add up the memory of a candidate in each phase."""
    hardware, parts = inputs.hardware, _parts(candidate, inputs)
    always = sum(part.nbytes for part in parts if part.placement is Placement.DEVICE)
    base = always + (CONTEXT_BYTES if hardware.separate else 0)
    text, embeds = _encoding(candidate, inputs), footprint.embeds_bytes(inputs.model, inputs.batch, inputs.c)
    on_host = candidate.text is Placement.HOST

    step, blocks = _step(candidate, inputs), _block_bytes(candidate, inputs)
    resident, window = tuple(range(len(blocks))), 0
    if candidate.blocks is Placement.STREAMED:
        window = WINDOW * max(blocks)
        resident = _resident(blocks, hardware.device_budget - base - step - window)
    stay = sum(blocks[i] for i in resident)
    come = 0 if candidate.blocks is Placement.DEVICE else stay + window
    return Plan(
        hardware=hardware,
        options=inputs.options,
        parts=parts,
        peaks=(
            Peak("text", base + embeds + (0 if on_host else text)),
            Peak("conditioning", base + embeds + _conditioning(candidate, inputs)),
            Peak("denoising", base + come + step),
            Peak("decoding", base + _decoding(candidate, inputs)),
        ),
        host_bytes=sum(part.nbytes for part in parts) - always + (text if on_host else 0),
        resident=resident,
        streamed_bytes=sum(blocks) - stay,
        tile_px=candidate.tile_px,
    )


def _encoding(candidate: Candidate, inputs: _PlanInputs) -> int:
    """Bytes beside what is always there: the encoder that takes most, with its weights where they are offloaded."""
    most = 0
    for encoder, storage in zip(inputs.model.encoders, candidate.encoders, strict=True):
        comes = encoder.weights.nbytes(storage, inputs.c, inputs.options.encoder_bits)
        working = encoder.working_bytes(inputs.batch, inputs.c) + encoder.weights.dense_bytes(storage, inputs.c)
        most = max(most, (comes if candidate.text is Placement.SEQUENTIAL else 0) + round(SLACK * working))
    return most


def _conditioning(candidate: Candidate, inputs: _PlanInputs) -> int:
    """Bytes for projecting the captions and making all steps' modulations, of which the matrices may be streamed."""
    weights = inputs.weights[MODULATIONS]
    matrix = Weights(weights.largest, 0, weights.largest).nbytes(
        candidate.storage, inputs.c, inputs.options.stored_bits
    )
    arriving = WINDOW * matrix if candidate.others is Placement.STREAMED else 0
    # twice: the captions and their norms, and the tables beside what they are cut from
    return 2 * inputs.kept + weights.dense_bytes(candidate.storage, inputs.c) + arriving


def _step(candidate: Candidate, inputs: _PlanInputs) -> int:
    """Bytes of one denoising step beside the weights."""
    fused = candidate.storage is WeightFormat.COMPUTE and candidate.blocks is not Placement.STREAMED
    lora = inputs.options.lora_bytes
    step = footprint.step_bytes(
        inputs.model.transformer,
        inputs.tokens,
        inputs.batch,
        inputs.c,
        fused=fused,
        adapted=lora > 0,
        per_expert=inputs.hardware.device == "cpu",
    )
    return round(SLACK * step) + inputs.kept + lora


def _decoding(candidate: Candidate, inputs: _PlanInputs) -> int:
    """Bytes of decoding one image, whole or in tiles, which are then put together."""
    vae = (
        inputs.model.vae.nbytes(WeightFormat.COMPUTE, inputs.vae_c, 16.0)
        if candidate.vae is Placement.SEQUENTIAL
        else 0
    )
    pixels = min(candidate.tile_px**2, inputs.pixels) if candidate.tile_px else inputs.pixels
    together = 2 * 3 * inputs.vae_c * inputs.pixels if candidate.tile_px else 0
    decoding = footprint.decode_bytes(inputs.model.vae_channels, pixels, inputs.vae_c)
    return vae + inputs.kept + together + round(SLACK * decoding)


def _block_bytes(candidate: Candidate, inputs: _PlanInputs) -> list[int]:
    return [weights.nbytes(candidate.storage, inputs.c, inputs.options.stored_bits) for weights in inputs.blocks]


def _parts(candidate: Candidate, inputs: _PlanInputs) -> tuple[Part, ...]:
    """Every part with its bytes."""
    places = {
        BLOCKS: candidate.blocks,
        MODULATIONS: candidate.others,
        CAPTIONS: candidate.others,
        REST: Placement.DEVICE,
    }
    transformer = [
        Part(
            name,
            candidate.storage,
            places[name],
            weights.nbytes(candidate.storage, inputs.c, inputs.options.stored_bits),
        )
        for name, weights in inputs.weights.items()
    ]
    encoders = [
        Part(name, storage, candidate.text, encoder.weights.nbytes(storage, inputs.c, inputs.options.encoder_bits))
        for name, encoder, storage in zip(ENCODERS, inputs.model.encoders, candidate.encoders, strict=True)
    ]
    vae = Part(
        VAE, WeightFormat.COMPUTE, candidate.vae, inputs.model.vae.nbytes(WeightFormat.COMPUTE, inputs.vae_c, 16.0)
    )
    return (*transformer, *encoders, vae)


def _resident(blocks: list[int], budget: int) -> tuple[int, ...]:
    """Choose as many blocks as fit, evenly spread, so that streaming always has the next one's time to work in."""
    n = len(blocks)
    for count in range(n - 1, 0, -1):
        chosen = tuple(i for i in range(n) if (i + 1) * count // n > i * count // n)
        if sum(blocks[i] for i in chosen) <= budget:
            return chosen
    return ()
