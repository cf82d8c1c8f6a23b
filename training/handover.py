"""What training has reached so far, for another machine to go on from: Full as it stands, whole and in 16 bit.

The folder is one that the product and stock diffusers draw with. Optimisers, pools and logs stay behind: pretraining
begins its steps anew, from weights that are not random any more.

    python training/handover.py save [--runs FOLDER]       # at any moment, also while pretraining runs
    python training/handover.py restore [--runs FOLDER]
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

import recipe
from folders import SHARED, save_variant, stage_of
from hidream.model.transformer import Transformer
from hidream.types import Variant
from pretrain import START
from stage import arguments

FOLDER = Path(__file__).parent / "handover"


def save(config: recipe.Recipe, runs: Path, folder: Path) -> None:
    """Put Full's moving average, as last saved, and the finished parts around it into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    parts = torch.load(runs / "pretrain" / "checkpoint.pt", map_location="cpu", weights_only=True)["parts"]
    transformer = Transformer(config.transformer)
    transformer.load_state_dict(
        {key.removeprefix("module."): value for key, value in parts["average"].items() if key != "n_averaged"}
    )
    save_variant(transformer, Variant.FULL, folder)
    for part in SHARED:
        shutil.copytree(stage_of(part, runs) / part, folder / part)


def restore(folder: Path, runs: Path) -> None:
    """Put what `save` kept to where the stages look for it, and call the finished ones done."""
    for part in SHARED:
        shutil.copytree(folder / part, stage_of(part, runs) / part, dirs_exist_ok=True)
        (stage_of(part, runs) / "done").touch()
    shutil.copytree(folder / "transformer", runs / "pretrain" / START / "transformer", dirs_exist_ok=True)


def main() -> None:
    """Save or restore."""
    parser = arguments(__doc__)
    parser.add_argument("action", choices=["save", "restore"])
    given = parser.parse_args()
    if given.action == "save":
        save(recipe.load(given.config), given.runs, FOLDER)
    else:
        restore(FOLDER, given.runs)


if __name__ == "__main__":
    main()
