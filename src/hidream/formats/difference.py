"""Weights stored as their difference to another file's: eight bits for each, and a scale for each row.

A matrix NAME [O, I] is two tensors in the file; every other tensor is stored whole, under its own name:

    NAME.difference   int8      [O, I]
    NAME.scale        bfloat16  [O, 1]
    value = base + difference · scale     in float32, then rounded to the type of `base`, the other file's tensor

The product has 15 bits at most, so float32 holds it exactly, and all that rounds is the sum and its conversion: the
values are the same bits on every CPU. Tensors of the other file that this one does not name are left out.

The metadata `difference` is JSON: `base` is the name of the folder of the other model, beside that of this one, and
`sha256` the digest of its file: `full/transformer/*.safetensors` with the base `dev` is read with the only file of
weights in `dev/transformer/`. Because that is a name and not a path, a file cannot have files of other places opened.
`training/folders.py` writes such files; docs/NANO.md describes them.

Shapes: O rows (outputs of a linear layer), I columns (inputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats.json_object import object_of, why
from hidream.formats.regular_file import sha256_of
from hidream.formats.safetensors_file import is_file_name, open_safetensors, shards

METADATA = "difference"
DIFFERENCE, SCALE = ".difference", ".scale"
SCALE_DTYPE = torch.bfloat16
BASE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
DIGEST_SHOWN = 12


@dataclass(frozen=True, slots=True)
class _Base:
    """The other file, and the digest that it must have."""

    file: Path
    sha256: str
    tensors: Mapping[str, Tensor]


def is_difference(metadata: Mapping[str, str]) -> bool:
    """Whether a file with this metadata holds differences."""
    return METADATA in metadata


def with_base(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], file: Path, *, values: bool
) -> dict[str, Tensor]:
    """Add the differences in a file to their base, which is opened here.

    Without `values` nothing is computed and the base's digest is not checked: each matrix is then the base's, which has
    the same shape and type. Raises CheckpointError when a part of a difference is missing or does not fit, and when the
    base is missing or another file than that which the differences were taken from.
    """
    base = _base(metadata, file)
    names = [key.removesuffix(DIFFERENCE) for key in tensors if key.endswith(DIFFERENCE)]
    whole = {key: tensor for key, tensor in tensors.items() if not key.endswith((DIFFERENCE, SCALE))}
    for key in tensors.keys() - whole.keys():
        name = key.removesuffix(DIFFERENCE).removesuffix(SCALE)
        if name not in names or name in whole or name + SCALE not in tensors or name not in base.tensors:
            raise CheckpointError(
                f"{file} has {key}; accepted: {DIFFERENCE} and {SCALE} of a tensor that {base.file} has and that "
                "is not also there whole"
            )
    for name in names:
        _check_fit(name, tensors, base.tensors[name], file)
    if not values:
        return whole | {name: base.tensors[name] for name in names}
    _check_digest(base, file)
    return whole | {name: add(base.tensors[name], tensors[name + DIFFERENCE], tensors[name + SCALE]) for name in names}


def add(base: Tensor, difference: Tensor, scale: Tensor) -> Tensor:
    """A matrix [O, I] in the type of `base`, from int8 [O, I] and bfloat16 [O, 1]."""
    product = difference.float().mul_(scale.float())
    return product.add_(base.float()).to(base.dtype)


def _base(metadata: Mapping[str, str], file: Path) -> _Base:
    accepted = "accepted: `base`, the name of a folder beside its model's, and `sha256`, of the file in it, in JSON"
    try:
        stated = object_of(metadata[METADATA])
    except ValueError as error:
        raise CheckpointError(f"{file}: its metadata `{METADATA}` cannot be read: {why(error)}; {accepted}") from error
    name, digest = stated.get("base"), stated.get("sha256")
    if not isinstance(name, str) or not is_file_name(name) or not isinstance(digest, str) or not _is_sha256(digest):
        raise CheckpointError(f"{file}: its metadata `{METADATA}` says {stated!r:.200}; {accepted}")
    part = file.parent.absolute()
    folder = part.parent.parent / name / part.name
    try:
        (only,) = shards(folder)
        its_metadata, tensors = open_safetensors(only)
    except (CheckpointError, ValueError) as error:
        reason = error.message if isinstance(error, CheckpointError) else f"{folder} has several files of weights"
        raise CheckpointError(
            f"{file} is a difference to the file in {folder}, but {reason}; accepted: both side by side"
        ) from error
    if is_difference(its_metadata):
        raise CheckpointError(f"{file} is a difference to {only}, which is one itself; accepted: a whole file")
    return _Base(only, digest, tensors)


def _check_digest(base: _Base, file: Path) -> None:
    try:
        digest = sha256_of(base.file)
    except OSError as error:
        raise CheckpointError(f"{base.file} cannot be read: {why(error)}; accepted: a readable file") from error
    if digest != base.sha256:
        raise CheckpointError(
            f"{file} is a difference to another file than {base.file}; accepted: the file whose SHA-256 begins with "
            f"{base.sha256[:DIGEST_SHOWN]}, not {digest[:DIGEST_SHOWN]}"
        )


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _check_fit(name: str, tensors: Mapping[str, Tensor], base: Tensor, file: Path) -> None:
    difference, scale = tensors[name + DIFFERENCE], tensors[name + SCALE]
    if base.dtype not in BASE_DTYPES or base.dim() != 2:
        wanted = "matrices of float16, bfloat16 or float32"
        raise CheckpointError(f"{file} has a difference to {name}, which is {_described(base)}; accepted: {wanted}")
    rows = (base.shape[0], 1)
    if difference.dtype is not torch.int8 or difference.shape != base.shape:
        wanted, odd, ending = f"int8 {list(base.shape)}", difference, DIFFERENCE
    elif scale.dtype is not SCALE_DTYPE or scale.shape != rows or not bool(scale.isfinite().all()):
        wanted, odd, ending = f"finite bfloat16 {list(rows)}", scale, SCALE
    else:
        return
    raise CheckpointError(f"{file}: {name}{ending} is {_described(odd)}; accepted: {wanted}")


def _described(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    infinite = tensor.is_floating_point() and not bool(tensor.isfinite().all())
    return f"{'not finite, ' * infinite}{kind} {list(tensor.shape)}"
