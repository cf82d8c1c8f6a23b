"""`hidream.Pipeline`: single images, several, streams and many, each the same to the last bit as the pipeline's."""

from __future__ import annotations

import inspect
import itertools
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

import hidream
from hidream.errors import InvalidInput, MissingInput, PromptRefused
from hidream.keywords import OF_PIPELINE
from hidream.library.session import READ_AHEAD
from hidream.model.pipeline import generate
from hidream.outputs.encode import encode
from hidream.request import ImageRequest, Prompts
from hidream.types import SEED_MAX, ImageFormat, Mode, Render, Size

SMALL = {"size": "256x256", "render": "native", "num_inference_steps": 2}
"""Some tens of milliseconds a step, and no more for a whole image."""


def expected(pipe, prompt="a fox", seed=7, size=(256, 256), **values) -> np.ndarray:
    """What the readable specification generates."""
    request = ImageRequest(prompt, Size(*size), seed, **{"steps": 2, "render": Render.NATIVE, **values})
    return generate(pipe._turns.model, request).pixels


def equal(image, pixels) -> bool:
    return np.array_equal(image.pixels, pixels)


def test_a_call_generates_the_image_of_its_request(pipe):
    image = pipe("a fox", seed=7, **SMALL)
    assert equal(image, expected(pipe))
    assert (image.seed, image.size, image.version) == (7, Size(256, 256), pipe.version)
    assert image.timings.inference_s > 0
    assert image.warnings == ()
    assert image.to_bytes() == encode(image.pixels, ImageFormat.PNG, seed=7, version=pipe.version)


def test_without_a_seed_each_image_has_its_own_which_makes_it_again(pipe):
    first, second = pipe("a fox", **SMALL), pipe("a fox", seed=-1, **SMALL)
    assert first.seed != second.seed
    assert equal(pipe("a fox", seed=first.seed, **SMALL), first.pixels)


@pytest.mark.slow
def test_several_images_have_seeds_that_follow_each_other(pipe):
    images = pipe("a fox", seed=SEED_MAX, num_images=3, **SMALL)
    assert [image.seed for image in images] == [SEED_MAX, 0, 1]
    assert all(equal(image, expected(pipe, seed=image.seed)) for image in images)
    assert len(pipe("a fox", num_images=1, **SMALL)) == 1
    with pytest.raises(InvalidInput, match="num_images is 5; accepted: a whole number from 1 to 4"):
        pipe("a fox", num_images=5, **SMALL)


def test_single_text_encoders_may_get_other_prompts(pipe):
    prompts = Prompts("a fox", llama="a robot")
    image = pipe(prompts, seed=7, **SMALL)
    assert equal(image, expected(pipe, prompts))
    assert not equal(image, expected(pipe))


def test_an_init_image_and_a_mask_may_be_in_memory(pipe):
    start = pipe("a fox", seed=7, **SMALL)
    mask = np.zeros((256, 256), bool)
    mask[:, 128:] = True
    again = pipe("a robot", seed=8, image=start.image, mask=mask, strength=0.5, render="native", num_inference_steps=2)
    assert again.size == Size(256, 256)  # that of the init image
    assert np.array_equal(again.pixels[:, :64], start.pixels[:, :64])
    assert not np.array_equal(again.pixels[:, 192:], start.pixels[:, 192:])


def test_the_mode_of_the_pipeline_is_that_of_a_call_that_names_none(pipe):
    turbo = hidream.Pipeline(pipe._turns.model, mode="turbo")
    assert "/turbo" in turbo.version
    assert turbo("a fox", **SMALL).version == turbo.version
    assert turbo("a fox", mode=Mode.EXACT, **SMALL).version == pipe.version
    with pytest.raises(InvalidInput, match="mode is 'quick'; accepted: exact, balanced, turbo"):
        hidream.Pipeline(pipe._turns.model, mode="quick")


def test_only_full_takes_guidance_and_a_negative_prompt(pipe, full):
    image = full("a fox", seed=7, negative_prompt="red", guidance_scale=3, **SMALL)
    assert equal(image, expected(full, negative_prompt="red", guidance=3.0))
    with pytest.raises(InvalidInput, match=r"guidance_scale is 5, and hidream-i1-dev was distilled .* up to 1, or"):
        pipe("a fox", guidance_scale=5, **SMALL)
    with pytest.raises(InvalidInput, match=r"negative_prompt is 'red', and hidream-i1-dev was distilled"):
        pipe("a fox", negative_prompt="red", **SMALL)
    assert equal(pipe("a fox", seed=7, guidance_scale=0.0, negative_prompt="", **SMALL), expected(pipe))


def test_the_safety_checker_refuses_prompts_and_flags_images(pipe):
    with pytest.raises(PromptRefused, match="refused by the safety checker"):
        pipe("a gory dismembered corpse", **SMALL)
    assert pipe("a fox", **SMALL).nsfw is False
    assert pipe("a gory dismembered corpse", enable_safety_checker=False, **SMALL).nsfw is None
    for prompt in ("a naked child", Prompts("a fox", t5="a naked child")):
        with pytest.raises(PromptRefused, match="never allowed"):
            pipe(prompt, enable_safety_checker=False, **SMALL)


def test_a_stream_yields_each_step_previews_and_the_image(pipe):
    options = SMALL | {"num_inference_steps": 6}
    events = list(pipe.stream("a fox", seed=7, previews=2, **options))
    assert [(event.done, event.of) for event in events] == [(i, 6) for i in range(1, 7)]
    assert [event.done for event in events if event.preview is not None] == [2, 4]
    assert {event.preview.size for event in events if event.preview is not None} == {(16, 16)}
    assert [event.image is None for event in events] == [True] * 5 + [False]
    assert equal(events[-1].image, expected(pipe, steps=6))
    assert all(event.preview is None for event in pipe.stream("a fox", seed=7, **SMALL))
    with pytest.raises(InvalidInput, match="previews is -1; accepted: a whole number from 0 to 100"):
        pipe.stream("a fox", previews=-1)


def test_a_stream_says_what_is_wrong_before_it_begins(pipe):
    with pytest.raises(MissingInput, match="prompt is empty"):
        pipe.stream(" ")


def test_whoever_leaves_a_stream_cancels_it(pipe):
    for _ in pipe.stream("a fox", **SMALL):
        break
    assert not pipe._turns.open  # its engine is closed
    stream = pipe.stream("a fox", **SMALL)
    next(stream)
    stream.close()
    assert not pipe._turns.open
    assert equal(pipe("a fox", seed=7, **SMALL), expected(pipe))


def test_a_call_within_a_stream_changes_neither(pipe):
    within = []
    for event in pipe.stream("a fox", seed=7, **SMALL):
        within.append(pipe("an owl", seed=event.done, **SMALL))
    assert equal(event.image, expected(pipe))
    assert [equal(image, expected(pipe, "an owl", i)) for i, image in enumerate(within, 1)] == [True, True]


@pytest.mark.slow
def test_a_short_call_on_another_thread_ends_before_a_long_one(pipe):
    ended = threading.Event()
    short = threading.Thread(target=lambda: (pipe("an owl", seed=1, **SMALL), ended.set()))
    after = []
    for event in pipe.stream("a fox", seed=7, **SMALL | {"num_inference_steps": 60}):
        if event.done == 1:
            short.start()
        after.append(ended.is_set())
    short.join()
    assert after[-2], "the short one had to wait for the long one"


@pytest.mark.slow
def test_threads_take_turns(pipe):
    images = {}

    def call(seed: int) -> None:
        images[seed] = pipe("a fox", seed=seed, **SMALL)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [equal(images[seed], expected(pipe, seed=seed)) for seed in range(4)] == [True] * 4


MIXED = [
    "a fox",
    ("an owl", 3),
    {"prompt": "a bear", "seed": 4, "size": (320, 256)},
    (Prompts("a robot", clip_l="an owl"), 5),
    {"prompt": "a ghost", "seed": 6, "num_inference_steps": 5, "size": None},
]


def mixed(pipe) -> list[np.ndarray]:
    return [
        expected(pipe),
        expected(pipe, "an owl", 3),
        expected(pipe, "a bear", 4, (320, 256)),
        expected(pipe, Prompts("a robot", clip_l="an owl"), 5),
        expected(pipe, "a ghost", 6, steps=5),
    ]


def test_many_are_the_same_to_the_last_bit_as_alone(pipe):
    results = dict(pipe.map(MIXED, seed=7, **SMALL))
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert [equal(results[i], pixels) for i, pixels in enumerate(mixed(pipe))] == [True] * 5
    assert [results[i].seed for i in range(5)] == [7, 3, 4, 5, 6]


@pytest.mark.slow
def test_many_can_come_in_order(pipe):
    long_first = [{"prompt": "a fox", "num_inference_steps": 9}, "an owl", "a bear"]
    as_they_end = [i for i, _ in pipe.map(long_first, **SMALL)]
    assert as_they_end == [1, 2, 0]
    assert [i for i, _ in pipe.map(long_first, ordered=True, **SMALL)] == [0, 1, 2]


def test_an_endless_iterator_is_read_as_far_as_needed(pipe):
    taken = []

    def prompts():
        for seed in itertools.count():
            taken.append(seed)
            yield "a fox", seed

    results = pipe.map(prompts(), **SMALL)
    for _ in range(3):
        next(results)
    results.close()
    together = pipe._turns.measured.tokens  # a small image has hundreds
    assert 3 + READ_AHEAD <= len(taken) <= 3 + READ_AHEAD * (1 + SMALL["num_inference_steps"]) + together // 100
    assert not pipe._turns.open
    assert list(pipe.map([])) == []


def test_a_bad_request_ends_all_or_is_returned(pipe):
    requests = [
        "a fox",
        {"prompt": "an owl", "sede": 3},
        7,
        {"seed": 3},
        {"prompt": "a bear", "loras": "ink"},
        "a ghost",
    ]
    results = dict(pipe.map(requests, errors="return", seed=7, **SMALL))
    assert [type(results[i]).__name__ for i in range(6)] == [
        "Image",
        *["InvalidInput"] * 2,
        "MissingInput",
        "InvalidInput",
        "Image",
    ]
    assert "unknown keyword 'sede'; the nearest is seed" in str(results[1])
    assert "request is 7; accepted: a prompt, a pair (prompt, seed), or a mapping" in str(results[2])
    assert "prompt is empty" in str(results[3])
    assert "loras names 'ink'; accepted: none, because none is configured" in str(results[4])
    assert equal(results[0], expected(pipe))
    with pytest.raises(InvalidInput, match="unknown keyword 'sede'") as caught:
        list(pipe.map(requests, **SMALL))
    assert caught.value.__notes__ == ["in the request with index 1"]
    assert not pipe._turns.open
    with pytest.raises(InvalidInput, match="unknown keyword 'sede'"):
        pipe.map(["a fox"], sede=3)
    with pytest.raises(InvalidInput, match='errors is \'no\'; accepted: "raise" or "return"'):
        pipe.map(["a fox"], errors="no")


def test_an_error_of_the_iterator_is_its_users(pipe):
    def prompts():
        yield "a fox"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(pipe.map(prompts(), errors="return", **SMALL))
    assert not pipe._turns.open


def test_help_reads_well():
    assert set(OF_PIPELINE.names) <= set(inspect.signature(hidream.Pipeline.__call__).parameters)
    text = inspect.getdoc(hidream.Pipeline)
    assert text.startswith("A HiDream-I1 model that generates images.")
    for method in (hidream.Pipeline.__call__, hidream.Pipeline.stream, hidream.Pipeline.map):
        assert "Unpack" not in str(inspect.signature(method))


@pytest.mark.integration
def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import json, sys; before = set(sys.modules)\n"
        "import hidream; dir(hidream), hidream.Prompts, hidream.errors.InvalidInput\n"
        "print(json.dumps([*sys.modules.keys() - before]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert roots - set(sys.stdlib_module_names) == {"hidream"}


def test_the_package_names_what_it_has():
    for name in hidream.__all__:
        assert getattr(hidream, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        hidream.Pipelin  # noqa: B018
