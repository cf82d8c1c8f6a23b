"""`Pipeline`: a loaded model as Python programs use it. Start here.

It reads keywords (`requests`), runs an engine (`session`) and wraps what comes out (`image`). Importing this module
imports torch, which takes seconds.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any, Literal, TypeAlias, TypeVar, Unpack, cast, overload

import numpy as np
import torch

from hidream.engine.loop import Outcome
from hidream.keywords import OF_PIPELINE, Keywords
from hidream.library import source
from hidream.library.image import Image, Progress
from hidream.library.requests import Reader
from hidream.library.session import Session, Turns
from hidream.library.source import Hub, Parts, PathOrId
from hidream.model.loading import load
from hidream.model.model import Model
from hidream.model.pipeline import plan_passes, resolve
from hidream.outputs.encode import pil_image
from hidream.parameter import refused
from hidream.request import BY_NAME, ImageRequest, Prompts
from hidream.safety.image import ImageChecker
from hidream.settings import sources
from hidream.settings.tables import Safety, Settings
from hidream.types import SEED_MAX, Mode, Step, Variant

R = TypeVar("R")

OneRequest: TypeAlias = "str | Prompts | tuple[str | Prompts, int] | Mapping[str, Any]"
"""A prompt, a prompt and a seed, or keywords with "prompt" among them."""
ONE_REQUEST = 'a prompt, a pair (prompt, seed), or a mapping such as {"prompt": "a fox", "seed": 7}'
_Results: TypeAlias = "Generator[tuple[int, Image | Exception], None, None]"

PREVIEWS_MAX = 100


class Pipeline:
    """A HiDream-I1 model that generates images.

    Examples:
        >>> import hidream
        >>> pipe = hidream.Pipeline.from_pretrained()  # nano, the model inside the package
        >>> image = pipe("a fox in the snow", seed=7)
        >>> image.save("fox.png")

    Call it for one image, or for a few with `num_images`. `stream` shows the progress of one image, and `map` generates
    many in batches. All of them take the same keywords, which `help(hidream.Pipeline.__call__)` lists. All may be used
    from several threads: the calls then take turns, step by step. Wrong input raises `hidream.errors.InvalidInput`,
    which names the keyword, its value and what is accepted.
    """

    def __init__(self, model: Model, *, mode: Mode | Literal["exact", "balanced", "turbo"] = "exact") -> None:
        """Wrap a model that is loaded already; `from_pretrained` loads one."""
        self._turns = Turns(model)
        self._model = model
        self._reader = Reader(model.variant, Mode(BY_NAME["mode"].kind.read("mode", mode)), model.loras.folder)

    @classmethod
    def from_pretrained(
        cls,
        model: PathOrId | None = None,
        *,
        variant: Variant | Literal["dev", "full", "fast"] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        storage: str = "auto",
        memory: float | str | None = None,
        mode: Mode | Literal["exact", "balanced", "turbo"] = "exact",
        loras: str | os.PathLike[str] | None = None,
        compiled: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = True,
        **parts: Unpack[Parts],
    ) -> Pipeline:
        """Load a model, which takes seconds to minutes.

        model
            A Hub id such as "HiDream-ai/HiDream-I1-Dev", a folder (of diffusers or ComfyUI), a file of the transformer
            (safetensors or GGUF), or None for nano. docs/MODELS.md lists the files that exist.
        variant
            "dev", "full" or "fast", where the files and their names do not say it, and for nano (default: "dev").
        device
            "cuda", "cuda:1", "mps", "cpu"; "auto" takes the first that there is.
        dtype
            "float32", "bfloat16" or "float16"; "auto" is float32 on a CPU and bfloat16 elsewhere.
        storage
            How large matrices are kept: "compute", "stored", "fp8", "int8" or "nf4"; "auto" takes the best that fits.
        memory
            GB of the device that may be used, as a number or a text such as "12GB"; None is all of it.
        mode
            The default mode: "exact", or "balanced" or "turbo", which trade a little quality for speed.
        loras
            A folder of LoRAs. A call names them by their file names, without .safetensors.
        compiled
            Whether torch.compile makes the transformer's blocks; None is on CUDA, unless layers are streamed.
        revision
            The branch, tag or commit of the model's Hub id.
        local_files_only
            False downloads from the Hub what its cache lacks, tens of GB, with `token`, if the repository asks for an
            account; `hidream models pull` does the same with progress.
        llama, t5, clip_l, clip_g, vae, tokenizers
            Parts that the checkpoint lacks, or others than its own: folders, files or Hub ids. The official
            repositories lack Llama.

        Raises InvalidInput on arguments that contradict each other, and ConfigurationError, or CheckpointError, if a
        file is missing or unfit, the device is not there or the memory is too small.
        """
        hub = Hub(revision, token, local_files_only)
        settled, checkpoint = source.find(model, variant, cast("Mapping[str, PathOrId | None]", parts), hub)
        default_mode = Mode(BY_NAME["mode"].kind.read("mode", mode))
        with _collector_off():
            loaded = load(
                settled,
                checkpoint,
                device=str(device),
                dtype=str(dtype).removeprefix("torch."),
                storage=storage,
                memory_gb=source.memory_gb(memory),
                loras=source.lora_folder(loras),
                hash_cache=None if model is None else Settings(home=sources.home(os.environ)).hash_cache,
                compiled=compiled,
            )
        return cls(loaded, mode=default_mode)

    @overload
    def __call__(self, prompt: str | Prompts, **options: Unpack[Keywords]) -> Image: ...
    @overload
    def __call__(self, prompt: str | Prompts, *, num_images: int, **options: Unpack[Keywords]) -> list[Image]: ...
    @OF_PIPELINE.documented
    def __call__(
        self, prompt: str | Prompts, *, num_images: int | None = None, **options: Unpack[Keywords]
    ) -> Image | list[Image]:
        """Generate an image; with `num_images`, a list of so many, with the seeds seed, seed + 1, and so on.

        `prompt` is a text, or `hidream.Prompts`, which has other texts for single text encoders. None is the same as
        leaving a keyword out. With the safety checker, a prompt may be refused (`hidream.errors.PromptRefused`), and
        `Image.nsfw` says whether the image is flagged; the image is delivered all the same (docs/SAFETY.md).
        """
        if num_images is not None:
            return self._several(prompt, num_images, options)
        *_, last = self._stream(self._reader.read(prompt, options), 0)
        assert last.image is not None, "a stream ends with its image"
        return last.image

    @OF_PIPELINE.spelled_out
    def stream(self, prompt: str | Prompts, *, previews: int = 0, **options: Unpack[Keywords]) -> Iterator[Progress]:
        """Generate an image, and yield its progress after each step; the last has the image.

        Examples:
            >>> for progress in pipe.stream("a fox in the snow", previews=3):
            ...     print(progress.done, "of", progress.of, progress.preview)
            >>> progress.image.save("fox.png")

        previews: how many previews to make on the way, evenly spread. To cancel, leave the loop: with the iterator, all
        that the image holds is freed. The keywords are those of a call.
        """
        if type(previews) is not int or not 0 <= previews <= PREVIEWS_MAX:
            raise refused("previews", previews, f"a whole number from 0 to {PREVIEWS_MAX}")
        return self._stream(self._reader.read(prompt, options), previews)

    @overload
    def map(
        self,
        requests: Iterable[OneRequest],
        *,
        ordered: bool = False,
        errors: Literal["raise"] = "raise",
        **options: Unpack[Keywords],
    ) -> Iterator[tuple[int, Image]]: ...
    @overload
    def map(
        self,
        requests: Iterable[OneRequest],
        *,
        ordered: bool = False,
        errors: Literal["return"],
        **options: Unpack[Keywords],
    ) -> Iterator[tuple[int, Image | Exception]]: ...
    @OF_PIPELINE.spelled_out
    def map(
        self,
        requests: Iterable[OneRequest],
        *,
        ordered: bool = False,
        errors: Literal["raise", "return"] = "raise",
        **options: Unpack[Keywords],
    ) -> Iterator[tuple[int, Image | Exception]]:
        """Generate many images, some at a time in one batch, and yield each with the index of its request.

        Examples:
            >>> for i, image in pipe.map(["a fox", "an owl", "a bear"], size="512x512"):
            ...     image.save(f"{i}.png")

        requests: prompts, pairs (prompt, seed), or mappings such as {"prompt": "a fox", "seed": 7}; an endless iterator
        is read only as far as the engine needs it. The keywords are those of a call, for all requests that do not have
        their own.
        ordered: yield in the order of the requests, instead of as the images end.
        errors: "raise" ends with the first error; "return" yields it in place of its image, and goes on.

        On a CPU, each image is the same to the last bit as that of a single call.
        """
        if errors not in ("raise", "return"):
            raise refused("errors", errors, '"raise" or "return"')
        if isinstance(requests, str | Prompts | Mapping) or not isinstance(requests, Iterable):
            raise refused("requests", requests, f"a list, or another iterable; each is {ONE_REQUEST}")
        OF_PIPELINE.check_names(options)
        results = self._map(requests, options)
        if errors == "raise":
            results = _raised(results)
        return _in_order(results) if ordered else results

    @property
    def variant(self) -> Variant:
        """Dev, full or fast."""
        return self._model.variant

    @property
    def version(self) -> str:
        """What names the model in files: variant, weights, default mode, device and type, release."""
        return self._model.version_of(self._reader.mode)

    @property
    def device(self) -> str:
        """The device that computes, such as "cpu" or "cuda:0"."""
        return str(self._model.device)

    @property
    def loras(self) -> list[str]:
        """The names of the LoRAs that a call may use."""
        return self._model.loras.names()

    def __repr__(self) -> str:
        return f"<hidream.Pipeline {self.version}>"

    def _several(self, prompt: str | Prompts, num_images: int, options: Keywords) -> list[Image]:
        """Generate images with seeds that follow each other; 0 follows the largest."""
        count = BY_NAME["num_images"].kind.read("num_images", num_images)
        first = self._reader.read(prompt, options).seed
        requests = [(prompt, (first + i) % (SEED_MAX + 1)) for i in range(count)]
        shared = {name: value for name, value in options.items() if name != "seed"}
        return [image for _, image in _in_order(_raised(self._map(requests, shared))) if isinstance(image, Image)]

    def _stream(self, request: ImageRequest, previews: int) -> Generator[Progress, None, None]:
        passes = plan_passes(self._model, request, resolve(self._model, request))
        total = sum(each.schedule.steps for each in passes)
        due = {round(i * total / (previews + 1)) for i in range(1, previews + 1)}
        events: deque[Step[np.ndarray]] = deque()
        outcomes: list[Outcome] = []
        with Session(self._turns) as session:
            session.add("image", request, events.append, due.__contains__)
            while not outcomes:
                outcomes = session.step()
                while events:
                    event = events.popleft()
                    preview = None if event.preview is None else pil_image(event.preview)
                    if event.done < total:
                        yield Progress(event.done, total, preview)
            image = self._image(request, outcomes[0])
        yield Progress(total, total, image=image)

    def _map(self, requests: Iterable[OneRequest], options: Mapping[str, Any]) -> _Results:
        """Yield the image or the error of each request, as it ends."""
        waiting = enumerate(requests)
        active: dict[str, tuple[int, ImageRequest]] = {}
        more = True
        with Session(self._turns, together=True) as session:
            while more or active:
                while more and session.wants_more:
                    index, given = next(waiting, (-1, None))
                    more = index >= 0
                    if not more:
                        break
                    try:
                        request = self._reader.read(*_prompt_and_options(given, options))
                        session.add(str(index), request)
                    except Exception as error:  # the edge of a request: the others go on
                        yield index, error
                    else:
                        active[str(index)] = index, request
                for outcome in session.step() if active else ():
                    index, request = active.pop(outcome.id)
                    yield index, self._image_or_error(request, outcome)

    def _image_or_error(self, request: ImageRequest, outcome: Outcome) -> Image | Exception:
        try:
            return self._image(request, outcome)
        except Exception as error:  # the edge of a request: the others go on
            return error

    def _image(self, request: ImageRequest, outcome: Outcome) -> Image:
        """Wrap a finished image, after the image check. Raises the error of a request that failed."""
        if outcome.error is not None:
            raise outcome.error
        generated = outcome.image
        assert generated is not None, "a request ends with an image or an error"
        return Image(
            generated.pixels,
            request.seed,
            self._model.version_of(request.mode),
            generated.warnings,
            generated.timings,
            self._checker.flagged(generated.pixels) if request.enable_safety_checker else None,
        )

    @cached_property
    def _checker(self) -> ImageChecker:
        return ImageChecker(Safety().nsfw_threshold)


def _prompt_and_options(given: object, options: Mapping[str, Any]) -> tuple[object, dict[str, Any]]:
    """Split a request of `map` into its prompt and keywords. Raises InvalidInput."""
    match given:
        case str() | Prompts():
            return given, {**options}
        case (prompt, seed):
            return prompt, {**options, "seed": seed}
        case Mapping():
            own = {name: value for name, value in given.items() if value is not None}
            return own.pop("prompt", ""), {**options, **own}
        case _:
            raise refused("request", given, ONE_REQUEST)


def _raised(results: _Results) -> Generator[tuple[int, Image], None, None]:
    """Raise the first error, with a note that says of which request it is."""
    with closing(results):
        for index, result in results:
            if isinstance(result, Exception):
                result.add_note(f"in the request with index {index}")
                raise result
            yield index, result


def _in_order(results: Generator[tuple[int, R], None, None]) -> Generator[tuple[int, R], None, None]:
    """Hold results back until all before them are there."""
    early: dict[int, R] = {}
    due = 0
    with closing(results):
        for index, result in results:
            early[index] = result
            while due in early:
                yield due, early.pop(due)
                due += 1


@contextmanager
def _collector_off() -> Iterator[None]:
    """Load without garbage collection: it would look at all modules of torch again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
