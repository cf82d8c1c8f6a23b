"""Take the shipped nano and its judge for what the stages made, so that only some of them need to run again.

All shared parts count as done, and all variants but those that are missing or named by `--again`, and what is distilled
from them. Full then goes on from its shipped weights, with its steps counted anew; a distilled variant begins anew.
With `--again words` the encoders are taught the words that are now in `concepts.toml` and `fillers.toml`, which the
variants need not learn.

    python training/shipped.py [--again words full dev fast] [--runs FOLDER]
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import hidream
from folders import SHARED, copy_whole, stage_of, stage_of_variant
from hidream.types import Variant
from pretrain import START
from stage import arguments

NANO = Path(hidream.__file__).parent / "nano"
JUDGE = Path(__file__).parent / "judge.safetensors"
ORDER = (Variant.FULL, Variant.DEV, Variant.FAST)
WORDS = "words"


def restore(nano: Path, runs: Path, again: Collection[str]) -> None:
    """Put the files of `nano` to where the stages look for them, and call the stages done whose files they are."""
    made = [(stage_of(part, runs), part) for part in SHARED]
    made += [(runs / "encoders", part) for part in SHARED if part != "vae"]
    for stage, part in made:
        if stage.name == "text" and WORDS in again:
            continue
        shutil.copytree(nano / Variant.DEV / part, stage / part, dirs_exist_ok=True)
        (stage / "done").touch()
    (runs / "judge").mkdir(parents=True, exist_ok=True)
    shutil.copy(JUDGE, runs / "judge")
    (runs / "judge" / "done").touch()
    missing = [variant for variant in ORDER if not (nano / variant).exists()]
    first = min((ORDER.index(variant) for variant in ORDER if variant in (*again, *missing)), default=len(ORDER))
    for variant in ORDER[:first]:
        stage = stage_of_variant(variant, runs)
        copy_whole(nano / variant, stage / variant)
        (stage / "done").touch()
    if first == 0:
        copy_whole(nano / Variant.FULL, runs / "pretrain" / START)


def main() -> None:
    """Restore."""
    parser = arguments(__doc__)
    parser.add_argument("--again", nargs="*", choices=[WORDS, *Variant], default=[])
    given = parser.parse_args()
    restore(NANO, given.runs, given.again)


if __name__ == "__main__":
    main()
