"""The score: 300 prompts whose combinations were held out of training, drawn by the product and read by the judge.

First the judge itself, on held-out renders and on the autoencoder's reconstructions of them (with their PSNR); it may
judge only where it is right often enough itself. Then each variant: per question and over all, with 95 % intervals
(Wilson), squares and other shapes apart, the pairs of objects apart. Behind these prompts come those with nouns that
training never met, asked only whether their stand-ins are drawn. Options of `ImageRequest` score faster or other
ways to draw: `--steps 14`, `--mode turbo`; a mode but the exact one has a report of its own. A contact sheet of the
first images lies beside the report (`report.json`, and `report.md`, a table of it).

    python training/evaluate.py [--nano FOLDER] [--variants dev full fast] [--steps N] [--mode MODE] [--prompts 300]
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import classifiers
from captions import plain_caption
from compose import Sprites
from concepts import Concepts, load_concepts
from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.loading import load
from hidream.model.model import Model
from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Mode, Size, Variant
from latents import shapes
from questions import truths, verdicts
from scenes import Extent, Layout, Scene, Split, draw_scene
from stage import arguments
from words import StandIns

SEED = 7
SHAPES = [Size(512, 512)] * 3 + [Size(1024, 512), Size(512, 1024), Size(768, 512), Size(512, 768)]
"""Of seven prompts, three are square."""
JUDGE_MUST_REACH = {"renders": 0.97, "reconstructions": 0.90}
SHEET = (6, 4)
ROWS = {
    "objects, one kind": "the object, of one kind",
    "objects, pairs": "both objects of two",
    "first": "which of two is left or above",
    "style": "style",
    "background": "background",
    "count": "number",
    "layout": "layout",
    "objects, square": "objects, squares",
    "objects, other shapes": "objects, other shapes",
    "objects, small": "objects, small",
    "objects, big": "objects, big",
    "all": "everything",
    "unknown": "the stand-in for an unknown noun",
}
"""Which rows of a report its table shows, and what it calls them."""
SHARE = "{share:.1%} ({low:.0%}–{high:.0%})"


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def prompts(count: int, concepts: Concepts) -> list[tuple[Scene, Size]]:
    """Draw the held-out scenes and their sizes; always the same for the same concepts."""
    rng = random.Random(SEED)
    sizes = [SHAPES[i % len(SHAPES)] for i in range(count)]
    return [(draw_scene(rng, Split.HELD_OUT, concepts, size.width / size.height), size) for size in sizes]


def strangers(count: int, concepts: Concepts, stand_ins: StandIns) -> list[tuple[Scene, Size, str]]:
    """Draw a square scene for each of the nouns kept out of training, of its stand-in."""
    rng, side = random.Random(SEED), SHAPES[0]
    grounds, styles = list(concepts.backgrounds), list(concepts.styles)
    objects = {noun: name for noun in concepts.fillers.held_out_nouns[:count] if (name := stand_ins.of(noun))}
    scenes = {noun: Scene((name,), rng.choice(styles), rng.choice(grounds)) for noun, name in objects.items()}
    return [(scene, side, noun) for noun, scene in scenes.items()]


@torch.no_grad()
def judged(judge: classifiers.Judge, image: Tensor, scene: Scene, concepts: Concepts) -> dict[str, bool]:
    """Read one image [3, H, W]: which questions it answers rightly. `all` is every one of them."""
    truth = truths([scene], concepts, image.shape[-1] / image.shape[-2])
    answers = {name: value.cpu() for name, value in judge(image[None]).items()}
    right = {name: bool(value[0]) for name, value in verdicts(answers, truth).items()}
    if scene.layout in (Layout.SINGLE, Layout.AND):
        del right["first"]  # one object is its own first, and an AND may stand either way
    return right | {"all": all(right.values())}


def groups_of(scene: Scene, square: bool) -> list[str]:
    """Name the groups of images that are also counted by themselves."""
    kinds = "pairs" if scene.layout is not Layout.SINGLE else "one kind"
    return ["square" if square else "other shapes", kinds, *([] if scene.extent is Extent.NORMAL else [scene.extent])]


class Score:
    """Right answers and questions, by group."""

    def __init__(self) -> None:
        self.right: dict[str, int] = defaultdict(int)
        self.count: dict[str, int] = defaultdict(int)

    def add(self, right: dict[str, bool], groups: list[str]) -> None:
        """Count one image's answers, in each of its groups."""
        for name, value in right.items():
            for key in (name, *(f"{name}, {group}" for group in groups)):
                self.right[key] += value
                self.count[key] += 1

    def rows(self) -> dict[str, dict[str, float]]:
        """Share and interval of each question in each group."""
        rows = {}
        for key in sorted(self.count):
            low, high = interval(self.right[key], self.count[key])
            share = self.right[key] / self.count[key]
            rows[key] = {"share": share, "low": low, "high": high, "count": self.count[key]}
        return rows


def score_model(
    model: Model,
    judge: classifiers.Judge,
    concepts: Concepts,
    count: int,
    sheet: Path,
    *,
    steps: int | None = None,
    mode: Mode = Mode.EXACT,
) -> dict[str, object]:
    """Draw and judge every prompt; the first squares become the contact sheet `sheet`."""
    score, tiles, seconds = Score(), {}, 0.0
    device = next(judge.parameters()).device
    asked = [(*drawn, "") for drawn in prompts(count, concepts)]
    asked += strangers(count, concepts, StandIns(model.text.tokenizers[2], concepts))
    for i, (scene, size, noun) in enumerate(asked):
        prompt = plain_caption(scene, concepts, noun)
        request = ImageRequest(prompt, size, seed=SEED + i, steps=steps, mode=mode)
        image = generate(model, request)
        seconds += image.timings.inference_s
        pixels = torch.from_numpy(image.pixels).to(device).permute(2, 0, 1).float() / 127.5 - 1
        right = judged(judge, pixels, scene, concepts)
        if noun:
            score.add({"unknown": right["objects"]}, [])
            continue
        score.add(right, groups_of(scene, size.width == size.height))
        if size.width == size.height and len(tiles) < SHEET[0] * SHEET[1]:
            tiles[f"{prompt} (seed {request.seed})"] = Image.fromarray(image.pixels).resize((256, 256))
    contact = Image.new("RGB", (256 * SHEET[0], 256 * SHEET[1]))
    for i, tile in enumerate(tiles.values()):
        contact.paste(tile, (256 * (i % SHEET[0]), 256 * (i // SHEET[0])))
    contact.save(sheet)
    drawn_by = {"version": model.version_of(mode), "mode": mode, "steps": steps}
    return drawn_by | {"seconds_each": seconds / len(asked), "scores": score.rows(), "sheet": list(tiles)}


@torch.no_grad()
def score_judge(model: Model, judge: classifiers.Judge, concepts: Concepts, sprites: Sprites) -> dict[str, object]:
    """Judge the judge, on held-out renders and their reconstructions, and measure the latter's PSNR."""
    grids = shapes(model.token_px)
    scores, errors = {"renders": Score(), "reconstructions": Score()}, []
    for image, scene in classifiers.held_out_images(SEED, grids, model.token_px, concepts, sprites):
        again = model.vae.decode(model.vae.encode(image[None]))[0].clamp(-1, 1).to(image.dtype)
        errors.append(float((again - image).div(2).square().mean()))
        groups = groups_of(scene, image.shape[1] == image.shape[2])
        scores["renders"].add(judged(judge, image, scene, concepts), groups)
        scores["reconstructions"].add(judged(judge, again, scene, concepts), groups)
    rows = {name: score.rows() for name, score in scores.items()}
    weak = [
        f"{question} on {name}: {row['share']:.1%}"
        for name, least in JUDGE_MUST_REACH.items()
        for question, row in rows[name].items()
        if question != "all" and "," not in question and row["share"] < least
    ]
    psnr_db = sum(-10 * math.log10(error) for error in errors) / len(errors)
    return {"psnr_db": psnr_db, "weak": weak, **rows}


def table(report: Mapping[str, Any]) -> str:
    """Lay a report out in Markdown, `ROWS` down and who drew the images across."""
    judge, variants = report["judge"], [name for name in report if name != "judge"]
    columns = {name: judge[name] for name in JUDGE_MUST_REACH} | {name: report[name]["scores"] for name in variants}
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    for row, called in ROWS.items():
        cells = [scores.get(row) for scores in columns.values()]
        lines.append([called, *(SHARE.format(**cell) if cell else "" for cell in cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Score variants and write the report."""
    parser = arguments(__doc__)
    parser.add_argument("--nano", type=Path, help="folder with dev, full and fast (default: that of the runs)")
    parser.add_argument("--variants", nargs="+", type=Variant, default=list(Variant))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--mode", type=Mode, choices=list(Mode), default=Mode.EXACT, help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=300)
    given = parser.parse_args()
    device, concepts, out = given.device, load_concepts(), given.runs / "evaluation"
    judge = classifiers.load(given.runs / "judge", concepts, device)
    out.mkdir(parents=True, exist_ok=True)
    suffix = "" if given.mode is Mode.EXACT else f"-{given.mode}"
    report: dict[str, object] = {}
    for variant in given.variants:
        model = load(variant, embedded(variant, given.nano or given.runs / "nano"), device=str(device))
        if "judge" not in report:
            report["judge"] = score_judge(model, judge, concepts, Sprites.load(device))
        sheet = out / f"{variant}{suffix}.png"
        report[variant] = score_model(model, judge, concepts, given.prompts, sheet, steps=given.steps, mode=given.mode)
        (out / f"report{suffix}.json").write_text(json.dumps(report, indent=1))
        (out / f"report{suffix}.md").write_text(table(report))
    print(table(report))
    print("reconstructions: {psnr_db:.1f} dB; the judge is weak at: {weak}".format(**report["judge"]))


if __name__ == "__main__":
    main()
