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


def tell(
    memory_gb: Sequence[float],
    host_gb: float,
    options: Options,
    device: str = "cuda",
    model: ModelShape = PUBLISHED,
) -> str:
    """Tell what would happen to a model, the published one unless said: a report for one machine, a table for several.

    `memory_gb` are cards in a machine of `host_gb`; for the device "cpu" or "mps" it is the machine's own memory.
    """
    machines = [
        Hardware.card(gb, host_gb) if device == "cuda" else Hardware(device, 0, int(gb * 2**30), fp8=device != "mps")
        for gb in memory_gb
    ]
    plans = [(f"{gb:g} GB", plan(machine, model, options)) for gb, machine in zip(memory_gb, machines, strict=True)]
    return report(plans[0][1], model) if len(plans) == 1 else plain(overview(plans, model))


def report(answer: Plan, model: ModelShape) -> str:
    """Tell everything of one plan, a line for each part, phase and decision."""
    machine = answer.hardware
    there = f"{_gb(machine.device_budget)} on {machine.device}"
    if machine.separate:
        there += f", {_gb(machine.host_budget)} in the host's memory"
    lines = [
        f"{answer.options.size}, {answer.options.steps} steps{', guided' if answer.options.guided else ''}: {there}",
        *(f"  {part.name:24}{part.storage:9}{part.placement:10}{_gb(part.nbytes):>9}" for part in answer.parts),
        *(f"  peak, {peak.phase:36}{_gb(peak.nbytes):>9}" for peak in answer.peaks),
        *(f"  {reason}" for reason in reasons(answer)),
    ]
    if not answer.fits:
        lines.append(f"  {verdict(answer, model)}")
    return "\n".join(lines)


def reasons(answer: Plan) -> Iterator[str]:
    """Say why a plan is as it is, one line for each decision."""
    blocks, options = answer.part(BLOCKS), answer.options
    missed = [f"{m.storage}{' streamed' * m.streamed} is short of {_gb(m.short_bytes)}" for m in answer.missed]
    why = "; ".join(missed) or ("as asked" if options.transformer else "the best there is")
    yield f"transformer in {blocks.storage}, {_place(answer)}: {why}"
    others = answer.part(MODULATIONS)
    if others.placement is Placement.STREAMED:
        size = _gb(others.nbytes + answer.part(CAPTIONS).nbytes)
        yield f"modulations and captions: computed once per image for all steps, so that their {size} need not stay"
    t5, llama = (answer.part(name) for name in ENCODERS[2:])
    yield f"encoders: T5 in {t5.storage}, Llama in {llama.storage}, {_encoder_place(llama.placement)}"
    if options.lora_bytes:
        yield f"LoRAs: room for {_gb(options.lora_bytes)}, the largest that one request may name together"
    whole = "whole images" if answer.tile_px is None else f"tiles of {answer.tile_px} px, because a whole one is large"
    yield f"decoding: {whole}"
    if not answer.hardware.separate:
        kinds = sorted({p.storage for p in answer.parts if p.placement in (Placement.SEQUENTIAL, Placement.STREAMED)})
        if answer.hardware.device == "cpu" and kinds:
            yield f"sequential means mapped: it needs files that are stored so ({', '.join(kinds)}; `hidream convert`)"
    elif answer.moved_bytes:
        yield f"{_gb(answer.moved_bytes)} go to the device for an image with a new prompt"


def verdict(answer: Plan, model: ModelShape) -> str:
    """Say in one line that a plan works or, where it does not, what is missing and what would work."""
    if answer.fits:
        return f"fits: {_gb(answer.peak.nbytes)} at most, while {answer.peak.phase}"
    machine = answer.hardware
    text = f"does not fit: {_gb(answer.peak.nbytes)} while {answer.peak.phase}, there are {_gb(machine.device_budget)}"
    if machine.separate:
        text += f"; {_gb(answer.host_bytes)} in the host's memory, there are {_gb(machine.host_budget)}"
    cures = "; ".join(_cures(answer, model)) or "none of: a larger card, more memory, fewer bits, 512*512"
    return f"{text}; accepted: {cures}"


def overview(plans: Sequence[tuple[str, Plan]], model: ModelShape) -> list[list[str]]:
    """Rows of a table, the head first: one for each machine and its name."""
    head = ["memory", "transformer", "T5, Llama", *PHASES, "host", "moved per image", "what happens"]
    return [head, *([name, *_cells(answer, model)] for name, answer in plans)]


def plain(rows: Sequence[Sequence[str]]) -> str:
    """Align rows for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _cells(answer: Plan, model: ModelShape) -> list[str]:
    t5, llama = (answer.part(name) for name in ENCODERS[2:])
    peaks = [_gb(peak.nbytes) for peak in answer.peaks]
    happens = "; ".join(_happens(answer)) if answer.fits else verdict(answer, model)
    host = _gb(answer.host_bytes) if answer.hardware.separate else "–"
    moved = _gb(answer.moved_bytes) if answer.hardware.separate else "–"
    return [str(answer.part(BLOCKS).storage), f"{t5.storage}, {llama.storage}", *peaks, host, moved, happens]


def _happens(answer: Plan) -> Iterator[str]:
    yield f"transformer: {_place(answer)}"
    yield f"encoders: {_encoder_place(answer.part(ENCODERS[3]).placement)}"
    if answer.tile_px:
        yield f"decoding in tiles of {answer.tile_px} px"


def _place(answer: Plan) -> str:
    if answer.streaming:
        count = len(answer.resident)
        return f"streamed: {count} blocks stay, {_gb(answer.streamed_bytes)} come in each step"
    if answer.part(BLOCKS).placement is Placement.DEVICE:
        return "stays"
    return "whole on the device while it denoises" if answer.hardware.separate else "mapped"


def _encoder_place(placement: Placement) -> str:
    return {
        Placement.DEVICE: "stay",
        Placement.SEQUENTIAL: "come one at a time",
        Placement.HOST: "are computed on the host",
    }[placement]


def _cures(answer: Plan, model: ModelShape) -> Iterator[str]:
    """Try what would make a plan fit."""
    machine, options = answer.hardware, answer.options

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
