"""Memory plans in words: the report of one, and a table of several.

GB are 10^9 bytes throughout, as with files; a card is named by what it is sold as (`candidates.Hardware.card`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from hidream.model.memory.candidates import Hardware, Options, Placement
from hidream.model.memory.footprint import BLOCKS, CAPTIONS, ENCODERS, MODULATIONS, PUBLISHED, ModelShape
from hidream.model.memory.plan import Plan, plan
from hidream.types import Size

CARDS_GB = (8, 12, 16, 24, 32, 48, 80)
HOSTS_GB = (16, 32, 48, 64, 96, 128)
PHASES = ("text", "conditioning", "denoising", "decoding")


def describe(
    memory_gb: Sequence[float],
    host_gb: float,
    options: Options,
    device: str = "cuda",
    model: ModelShape = PUBLISHED,
) -> str:
    """Describe the plans of a model, by default the published one: a report for one machine, a table for several.

    `memory_gb` are cards in a machine of `host_gb`; for the device "cpu" or "mps" it is the machine's own memory.
    """
    machines = [
        Hardware.card(gb, host_gb) if device == "cuda" else Hardware(device, 0, int(gb * 2**30), fp8=device != "mps")
        for gb in memory_gb
    ]
    plans = [(f"{gb:g} GB", plan(machine, model, options)) for gb, machine in zip(memory_gb, machines, strict=True)]
    return report(plans[0][1], model) if len(plans) == 1 else plain(overview(plans, model))


def report(chosen: Plan, model: ModelShape) -> str:
    """Tell everything of one plan, a line for each part, phase and decision."""
    machine = chosen.hardware
    there = f"{_gb(machine.device_budget)} on {machine.device}"
    if machine.separate:
        there += f", {_gb(machine.host_budget)} in the host's memory"
    lines = [
        f"{chosen.options.size}, {chosen.options.steps} steps{', guided' if chosen.options.guided else ''}: {there}",
        *(f"  {part.name:24}{part.storage:9}{part.placement:10}{_gb(part.nbytes):>9}" for part in chosen.parts),
        *(f"  peak, {peak.phase:36}{_gb(peak.nbytes):>9}" for peak in chosen.peaks),
        *(f"  {reason}" for reason in reasons(chosen)),
    ]
    if not chosen.fits:
        lines.append(f"  {verdict(chosen, model)}")
    return "\n".join(lines)


def reasons(chosen: Plan) -> Iterator[str]:
    """Say why a plan is as it is, one line for each decision."""
    blocks, options = chosen.part(BLOCKS), chosen.options
    missed = [f"{m.storage}{' streamed' * m.streamed} is short of {_gb(m.short_bytes)}" for m in chosen.missed]
    why = "; ".join(missed) or ("as requested" if options.transformer else "the best option")
    yield f"transformer in {blocks.storage}, {_placement(chosen)}: {why}"
    others = chosen.part(MODULATIONS)
    if others.placement is Placement.STREAMED:
        size = _gb(others.nbytes + chosen.part(CAPTIONS).nbytes)
        yield f"modulations and captions: computed once per image for all steps, so their {size} need not stay"
    t5, llama = (chosen.part(name) for name in ENCODERS[2:])
    yield f"encoders: T5 in {t5.storage}, Llama in {llama.storage}, {_encoder_place(llama.placement)}"
    if options.lora_bytes:
        yield f"LoRAs: room for {_gb(options.lora_bytes)}, the largest that one request may name together"
    tiles = f"tiles of {chosen.tile_px} px, because a whole image takes too much memory"
    yield f"decoding: {'whole images' if chosen.tile_px is None else tiles}"
    if not chosen.hardware.separate:
        kinds = sorted({p.storage for p in chosen.parts if p.placement in (Placement.SEQUENTIAL, Placement.STREAMED)})
        if chosen.hardware.device == "cpu" and kinds:
            types = ", ".join(kinds)
            yield f"sequential means memory-mapped: the files must be stored in this type ({types}; `hidream convert`)"
    elif chosen.moved_bytes:
        yield f"{_gb(chosen.moved_bytes)} are copied to the device for an image with a new prompt"


def verdict(chosen: Plan, model: ModelShape) -> str:
    """Say in one line that a plan works or, where it does not, what is missing and what would work."""
    if chosen.fits:
        return f"fits: {_gb(chosen.peak.nbytes)} at most, while {chosen.peak.phase}"
    machine = chosen.hardware
    text = f"does not fit: {_gb(chosen.peak.nbytes)} needed while {chosen.peak.phase}"
    text += f", {_gb(machine.device_budget)} available"
    if machine.separate:
        text += f"; {_gb(chosen.host_bytes)} needed in the host's memory, {_gb(machine.host_budget)} available"
    remedies = "; ".join(_remedies(chosen, model)) or "none of: a larger card, more memory, fewer bits, 512*512"
    return f"{text}; accepted: {remedies}"


def overview(plans: Sequence[tuple[str, Plan]], model: ModelShape) -> list[list[str]]:
    """Rows of a table, the head first: one for each machine and its name."""
    head = ["memory", "transformer", "T5, Llama", *PHASES, "host", "moved per image", "what happens"]
    return [head, *([name, *_cells(chosen, model)] for name, chosen in plans)]


def plain(rows: Sequence[Sequence[str]]) -> str:
    """Align rows for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _cells(chosen: Plan, model: ModelShape) -> list[str]:
    t5, llama = (chosen.part(name) for name in ENCODERS[2:])
    peaks = [_gb(peak.nbytes) for peak in chosen.peaks]
    happens = "; ".join(_steps_in_words(chosen)) if chosen.fits else verdict(chosen, model)
    host = _gb(chosen.host_bytes) if chosen.hardware.separate else "–"
    moved = _gb(chosen.moved_bytes) if chosen.hardware.separate else "–"
    return [str(chosen.part(BLOCKS).storage), f"{t5.storage}, {llama.storage}", *peaks, host, moved, happens]


def _steps_in_words(chosen: Plan) -> Iterator[str]:
    yield f"transformer: {_placement(chosen)}"
    yield f"encoders: {_encoder_place(chosen.part(ENCODERS[3]).placement)}"
    if chosen.tile_px:
        yield f"decoding in tiles of {chosen.tile_px} px"


def _placement(chosen: Plan) -> str:
    if chosen.streaming:
        count = len(chosen.resident)
        return f"streamed: {count} blocks stay, {_gb(chosen.streamed_bytes)} come in each step"
    if chosen.part(BLOCKS).placement is Placement.DEVICE:
        return "stays"
    return "whole on the device while it denoises" if chosen.hardware.separate else "mapped"


def _encoder_place(placement: Placement) -> str:
    return {
        Placement.DEVICE: "stay",
        Placement.SEQUENTIAL: "come one at a time",
        Placement.HOST: "are computed on the host",
    }[placement]


def _remedies(chosen: Plan, model: ModelShape) -> Iterator[str]:
    """Try what would make a plan fit."""
    machine, options = chosen.hardware, chosen.options

    def works(hardware: Hardware = machine, options: Options = options) -> bool:
        return plan(hardware, model, options).fits

    if machine.separate:
        cards = ((gb, Hardware.card(gb, 0).device_bytes) for gb in CARDS_GB)
        larger = ((gb, n) for gb, n in cards if n > machine.device_bytes)
        card = next((gb for gb, n in larger if works(dataclasses.replace(machine, device_bytes=n))), None)
        if card:
            yield f"a card of {card} GB"
    more = (gb for gb in HOSTS_GB if gb * 2**30 > machine.host_bytes)
    host = next((gb for gb in more if works(dataclasses.replace(machine, host_bytes=gb * 2**30))), None)
    if host:
        yield f"{host} GB of {'host ' if machine.separate else ''}memory"
    if options.fewest_bits > 4 and works(options=dataclasses.replace(options, fewest_bits=4)):
        yield "weights in 4 bits"
    if options.size != Size(512, 512) and works(options=dataclasses.replace(options, size=Size(512, 512))):
        yield "512*512"


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"
