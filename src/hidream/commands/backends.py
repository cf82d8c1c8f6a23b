"""Where `hidream generate` generates: a model in this process (`Local`), or a server (`Remote`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hidream.commands.jobs import Job
from hidream.commands.prompt_rows import FILES
from hidream.errors import ConnectionFailed, HiDreamError, InvalidInput
from hidream.settings.tables import Settings
from hidream.types import Variant

IN_FLIGHT = 16
"""Tasks that are submitted to a server before their images are fetched: two workers' tasks, for a full batch."""

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished image as the bytes of its file. `seconds` are those of the model, by phase."""

    data: bytes
    seed: int
    version: str
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]


class Backend(Protocol):
    """Generates images."""

    def generate(self, jobs: Sequence[Job], on_step: OnStep) -> Iterator[tuple[int, Finished | HiDreamError]]:
        """Yield the image or the error of each job with its index, as they end."""


class Local:
    """A model in this process. Several images share its steps (`Pipeline.map`)."""

    def __init__(self, variant: Variant, config: Settings) -> None:
        """Load the configured model, which takes seconds to minutes."""
        from hidream.worker.garbage import gc_frozen

        with gc_frozen():
            from hidream.library.pipeline import Pipeline
            from hidream.worker.loading import load_configured

            self._pipe = Pipeline(load_configured(variant, config))

    def generate(self, jobs: Sequence[Job], on_step: OnStep) -> Iterator[tuple[int, Finished | HiDreamError]]:
        """Yield the images as they end; with a single one, report its steps."""
        if len(jobs) == 1:
            yield 0, self._one(jobs[0], on_step)
            return
        for index, image in self._pipe.map([_keywords(job) for job in jobs], errors="return"):
            if isinstance(image, Exception):
                if not isinstance(image, HiDreamError):
                    raise image
                yield index, image
            else:
                yield index, _finished(jobs[index], image)

    def _one(self, job: Job, on_step: OnStep) -> Finished | HiDreamError:
        keywords = _keywords(job)
        try:
            for progress in self._pipe.stream(keywords.pop("prompt"), **keywords):
                on_step(progress.done, progress.of)
        except HiDreamError as error:
            return error
        return _finished(job, progress.image)


def _keywords(job: Job) -> dict[str, Any]:
    """The keywords of the library; a file's format and quality are not among them.

    The owner of the machine generates for themselves: no prompt is refused, unless they ask for the check.
    """
    keywords = {name: value for name, value in job.parameters.items() if not name.startswith("output_")}
    return {"enable_safety_checker": False, **keywords}


def _finished(job: Job, image: Any) -> Finished:  # noqa: ANN401 - an image of the library, which imports torch
    data = image.to_bytes(job.output_format, quality=job.parameters.get("output_quality"))
    t = image.timings
    seconds = {"text": t.text_s, "denoise": t.denoise_s, "decode": t.decode_s}
    return Finished(data, image.seed, image.version, image.warnings, seconds)


class Remote:
    """A server. A task that was submitted is submitted once: its Idempotency-Key is the job's, in its folder."""

    def __init__(self, url: str, variant: Variant, config: Settings, folder_id: str) -> None:
        """Connect; nothing is sent yet. Raises Unauthorized without a key."""
        import hidream

        self._client = hidream.Client(url, config.api_key or None, model=str(variant), timeout=None)
        self._folder_id = folder_id

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def generate(self, jobs: Sequence[Job], on_step: OnStep) -> Iterator[tuple[int, Finished | HiDreamError]]:
        """Keep some tasks submitted, and yield their images in order; with a single one, report its steps."""
        waiting, tasks = deque(enumerate(jobs)), deque[tuple[int, Any]]()
        while waiting or tasks:
            while waiting and len(tasks) < IN_FLIGHT:
                index, job = waiting.popleft()
                tasks.append((index, self._submitted(job)))
            index, task = tasks.popleft()
            if isinstance(task, HiDreamError):
                yield index, task
                continue
            try:
                if len(jobs) == 1:
                    for event in task.events():
                        on_step(event.step, event.steps)
                result = task.result()
            except ConnectionFailed:
                raise  # the server is gone: every further task would end so
            except HiDreamError as error:
                yield index, error
                continue
            seconds = {"model": result.timings.inference_s}
            seed = jobs[index].parameters["seed"] if result.seed is None else result.seed
            yield index, Finished(result.files[0], seed, result.version, result.warnings, seconds)

    def _submitted(self, job: Job) -> Any:  # noqa: ANN401 - a task of the client, or the error of its submission
        keywords: Any = {name: Path(value) if name in FILES else value for name, value in job.parameters.items()}
        key = f"{self._folder_id}-{job.key}" if self._folder_id else None
        try:
            return self._client.submit(keywords.pop("prompt"), idempotency_key=key, **keywords)
        except InvalidInput as error:
            return error
