"""The tables of docs/MEMORY.md, made from memory plans.

`python tests/model/memory_tables.py FILE` (`make tables`) writes them into the page, between the comments that name
them. A test checks that the page is up to date.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hidream.model.memory.candidates import Hardware, Options
from hidream.model.memory.footprint import PUBLISHED
from hidream.model.memory.plan import plan
from hidream.model.memory.plan_report import CARDS_GB, overview
from hidream.types import Size, Variant, WeightFormat

GGUF_BITS = {"Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q4_K": 4.5, "Q3_K": 3.4375, "Q2_K": 2.625}
"""Bits per value of GGUF's types (gguf.GGML_QUANT_SIZES; a test compares). Files named …_M hold some in more."""


def filled(page: str) -> str:
    """Return a page with the current tables, each between its comments."""
    for name, table in memory_tables().items():
        between = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        page = between.sub(lambda found, table=table: found[1] + table + found[2], page)
    return page


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write rows as a table of Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def memory_tables() -> dict[str, str]:
    """Make the tables of docs/MEMORY.md, by the name under which the page has them."""
    dev, full = Options.of(Variant.DEV, Size(1024, 1024)), Options.of(Variant.FULL, Size(1536, 1536))

    def cards(options: Options, host_gb: int, sizes: Sequence[int] = CARDS_GB) -> str:
        plans = [(f"{gb} GB", plan(Hardware.card(gb, host_gb), PUBLISHED, options)) for gb in sizes]
        return markdown(overview(plans, PUBLISHED))

    cpus = [(f"{gb} GB", plan(Hardware.cpu(gb), PUBLISHED, dev)) for gb in (16, 24, 32, 64, 128)]
    return {
        "dev-64": cards(dev, 64),
        "dev-32": cards(dev, 32),
        "dev-16": cards(dev, 16),
        "full-1536": cards(full, 64),
        "exact": cards(dataclasses.replace(dev, fewest_bits=16), 96),
        "cpu": markdown(overview(cpus, PUBLISHED)),
        "storage": markdown(storage_rows(dev)),
    }


def storage_rows(dev: Options) -> list[list[str]]:
    """Weigh the transformer in every storage: as a file, and while it denoises at 1024² and stays whole on the card."""
    kinds = [
        (storage.value, storage, 16.0)
        for storage in (WeightFormat.COMPUTE, WeightFormat.FP8, WeightFormat.INT8, WeightFormat.NF4)
    ]
    kinds += [(name, WeightFormat.STORED, bits) for name, bits in GGUF_BITS.items()]
    rows = [["weights", "all", "while denoising", "smallest card", "smallest card, streamed"]]
    for name, storage, bits in kinds:
        options = dataclasses.replace(dev, transformer=storage, stored_bits=bits)
        plans = [(gb, plan(Hardware.card(gb, 128), PUBLISHED, options)) for gb in (4, 6, 8, 10, 12, 16, 20, 24, 32, 48)]
        stays = next((gb, p) for gb, p in plans if p.fits and not p.streaming)
        least = next(gb for gb, p in plans if p.fits)
        parts = sum(part.nbytes for part in stays[1].parts if part.name.startswith("transformer."))
        peak = next(peak for peak in stays[1].peaks if peak.phase == "denoising")
        rows.append([name, in_gb(parts), in_gb(peak.nbytes), f"{stays[0]} GB", f"{least} GB"])
    return rows


def in_gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
