"""The images of one `hidream generate`: prompts × seeds × a grid.

A key finds an image again in a later run.

Knows neither models nor servers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidream.commands import prompt_rows
from hidream.commands.prompt_rows import FILES, Row
from hidream.errors import InvalidInput
from hidream.request import BY_NAME
from hidream.types import FORMATS, RANDOM_SEEDS, SEED_MAX, ImageFormat

JOBS_MAX = 100_000
RANDOM = -1
"""The seed of a job that has none yet; `settled` chooses it."""
_SLUG_CHARS = 40


@dataclass(frozen=True, slots=True)
class Job:
    """One image. `parameters` are JSON values by the API's names, with the seed.

    `key` is equal for equal requests of equal models, and differs between repetitions of one request: a later run finds
    by it what is done. `cell`: the values of the grid's axes. `file`: the name in the folder.
    """

    parameters: Mapping[str, Any]
    where: str
    key: str
    cell: tuple[str, ...]
    file: str

    def changed(self, **parameters: object) -> Job:
        """The same job with other values of some parameters."""
        return dataclasses.replace(self, parameters={**self.parameters, **parameters})

    @property
    def output_format(self) -> ImageFormat:
        """The format of the file."""
        return ImageFormat(self.parameters["output_format"])


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a grid: a parameter, and the texts of its values."""

    name: str
    texts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Read NAME=VALUE,VALUE. Raises InvalidInput."""
        name, equals, listed = text.partition("=")
        separator = "|" if "|" in listed else ","
        texts = tuple(each.strip() for each in listed.split(separator) if each.strip())
        if not equals or not texts:
            raise InvalidInput(
                f"--grid is {text!r:.100}; accepted: NAME=VALUE,VALUE such as steps=8,16,28 "
                "(with | in place of commas, values may contain commas)"
            )
        found = prompt_rows.parameter(name)
        if found.name in ("num_images", "output_format"):
            raise InvalidInput(f"--grid is {text!r:.100}; accepted: a parameter that changes an image")
        for each in texts:
            prompt_rows.read(name, each, typed=True, label=f"--grid {name.strip()}")
        return cls(name.strip(), texts)

    def values(self) -> list[tuple[str, tuple[str, Any]]]:
        """Each text with the API's name of the parameter and its value."""
        return [(text, prompt_rows.read(self.name, text, typed=True)) for text in self.texts]


def plan(
    rows: Sequence[Row],
    base: Mapping[str, Any],
    *,
    seeds: Sequence[int] = (),
    axes: Sequence[Axis] = (),
    identity: Mapping[str, Any],
) -> list[Job]:
    """Make the jobs of all rows, in order: `base` has the parameters that a row does not say itself.

    `identity` is what decides an image beside its request, such as the model. Raises InvalidInput.
    """
    requests: list[tuple[dict[str, Any], str, tuple[str, ...], int | None]] = []
    for row in rows:
        merged = {**base, **row.parameters}
        for cell in itertools.product(*(axis.values() for axis in axes)):
            in_cell = {**merged, **dict(value for _, value in cell)}
            prompt_rows.check(in_cell, row.where)
            labels = tuple(text for text, _ in cell)
            requests += [(each, row.where, labels, seed) for each, seed in _each_seed(in_cell, seeds)]
            if len(requests) > JOBS_MAX:
                raise InvalidInput(f"more than {JOBS_MAX:,} images are asked for; accepted: fewer, in several runs")
    seen: Counter[str] = Counter()
    jobs = []
    digits = max(4, len(str(len(requests))))
    for number, (request, where, labels, seed) in enumerate(requests, 1):
        digest = _digest(request, identity)
        key = f"{digest}-{seen[digest]}"
        seen[digest] += 1
        parameters = {"output_format": str(ImageFormat.PNG), **request, "seed": RANDOM if seed is None else seed}
        _check_quality(parameters, where)
        suffix = FORMATS[ImageFormat(parameters["output_format"])].suffixes[0]
        file = f"{number:0{digits}}-{_slug(parameters['prompt'])}.{suffix}"
        jobs.append(Job(parameters, where, key, labels, file))
    return jobs


def settled(jobs: Sequence[Job], salt: str) -> list[Job]:
    """Choose the random seeds, by the keys and a random `salt`: with the same salt, a later run has the same ones.

    So a server finds the task of an interrupted run by its Idempotency-Key, with an equal request.
    """
    return [job if job.parameters["seed"] != RANDOM else job.changed(seed=_random_seed(salt, job.key)) for job in jobs]


def _random_seed(salt: str, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt} {key}".encode()).digest()[:8]) % RANDOM_SEEDS


def _each_seed(request: dict[str, Any], seeds: Sequence[int]) -> Iterable[tuple[dict[str, Any], int | None]]:
    """Yield the request for each of its seeds, None for a random one that is chosen later."""
    count = request.pop("num_images", 1)
    given = request.get("seed", -1)
    if seeds:
        return [({**request, "seed": seed}, seed) for seed in seeds]
    if given == -1:
        request = {name: value for name, value in request.items() if name != "seed"}
        return [(request, None)] * count
    following = [(given + i) % (SEED_MAX + 1) for i in range(count)]
    return [({**request, "seed": seed}, seed) for seed in following]


def _check_quality(parameters: Mapping[str, Any], where: str) -> None:
    file = FORMATS[ImageFormat(parameters["output_format"])]
    if "output_quality" in parameters and file.quality is None:
        flag = BY_NAME["output_quality"].flag
        name = (where and "quality") or (flag.name if flag else "")
        raise InvalidInput(f"{where + ': ' if where else ''}{name} is given, and {file.label} is lossless; accepted: "
                           "with a lossy format, or none")  # fmt: skip


def _digest(request: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Name a request by its content, that of its files included."""
    content = {name: _file_digest(Path(request[name])) for name in FILES if name in request}
    text = json.dumps([{**request, **content}, identity], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a NUL, or what is no text of the file system
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(f"{str(path)!r:.200} cannot be read: {why}") from error


def _slug(prompt: str) -> str:
    """The beginning of a prompt, as part of a file name that every system accepts."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower(), flags=re.ASCII).strip("-")
    return words[:_SLUG_CHARS].rstrip("-") or "image"
