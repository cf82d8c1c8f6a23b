"""The engine against the pipeline: the same image to the last bit, whatever other requests run, come and go."""

from __future__ import annotations

import dataclasses
import functools
import gc
import io
import random
import weakref
from contextlib import closing, contextmanager
from threading import Lock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hidream.engine import capacity
from hidream.engine.capacity import measure
from hidream.engine.loop import Engine, Options, Outcome
from hidream.engine.request import Policy
from hidream.engine.runner import LATENTS, Runner
from hidream.errors import InvalidInput, NotFinite
from hidream.images.prepared import prepare
from hidream.model import pipeline
from hidream.model.checkpoint.lora_folder import LoraFolder
from hidream.model.latents import init_image
from hidream.model.memory.footprint import TEXT_TOKENS
from hidream.model.memory.phases import Phases
from hidream.model.model import Model
from hidream.model.network.lora import layers
from hidream.request import ImageRequest, LoraUse
from hidream.types import Mode, Render, Sampler, Size, Variant
from model.live_bytes import LiveBytes

PROMPTS = ("a red cat", "flat style a sailboat in the ocean", "two stars at night", "")


def asked(seed: int) -> ImageRequest:
    """A request of any kind, decided by its seed."""
    rng = random.Random(seed)
    size = Size(*(rng.choice((128, 160, 224)) for _ in range(2)))
    image = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 90)).save(image, "PNG")
    return ImageRequest(
        prompt=rng.choice(PROMPTS[:3]),
        size=size,
        seed=seed,
        negative_prompt=rng.choice(PROMPTS),
        steps=rng.randint(1, 4),
        guidance=rng.choice((None, None, 3.0)),
        sampler=rng.choice((None, None, Sampler.EULER, Sampler.UNIPC)),
        render=rng.choice((Render.NATIVE, Render.NATIVE, Render.SCALED, Render.REFINE, Render.REFERENCE)),
        mode=rng.choice((Mode.EXACT, Mode.EXACT, Mode.TURBO)),
        image=image.getvalue() if rng.random() < 0.2 else None,
        loras=(LoraUse("glow", rng.choice((0.5, 1.0))),) if rng.random() < 0.3 else (),
    )


@pytest.fixture(scope="module")
def model(small, tmp_path_factory) -> Model:
    """The small model with a LoRA."""
    g = torch.Generator().manual_seed(0)
    weights = {}
    for name, outputs, inputs in [
        ("double_stream_blocks.0.block.attn1.to_q", 128, 128),
        ("double_stream_blocks.0.block.ff_i.experts.1.w1", 512, 128),
        ("single_stream_blocks.1.block.attn1.to_out", 128, 128),
        ("single_stream_blocks.0.block.ff_i.gate", 4, 128),
        ("final_layer.adaLN_modulation.1", 256, 128),
    ]:
        weights[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(2, inputs, generator=g) * 0.1
        weights[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(outputs, 2, generator=g) * 0.1
    for side in (1, 2):
        for part, shape in (("a", (512, 3)), ("b", (3, 128))):
            loha = f"single_stream_blocks.1.block.ff_i.experts.0.w3.hada_w{side}_{part}"
            weights[f"diffusion_model.{loha}"] = torch.randn(shape, generator=g) * 0.3
    weights |= {f"another_models.{part}.weight": torch.ones(1, 1) for part in ("lora_A", "lora_B")}
    path = tmp_path_factory.mktemp("loras") / "glow.safetensors"
    save_file(weights, path)
    return dataclasses.replace(small, loras=LoraFolder(path.parent, layers(small.transformer)))


@pytest.fixture(scope="module")
def alone(model):
    """The pixels that the pipeline draws for a seed's request."""

    @functools.cache
    def pixels(seed: int) -> np.ndarray:
        return pipeline.generate(model, asked(seed)).pixels

    return pixels


def live(model: Model, seed: int, seeds: int, requests: int, request=asked) -> tuple[dict[str, Outcome], set[str]]:
    """One random life of an engine: outcomes by id, which ends in the seed of its request, and who was aborted."""
    rng = random.Random(seed)
    options = Options(
        policy=rng.choice(list(Policy)),
        tokens=rng.choice((100, 200, 400, 2000)),
        requests=rng.choice((None, 2, 4)),
        memory_bytes=2**33,
        together=rng.random() < 0.9,
        overlap=rng.random() < 0.3,
    )
    engine, outcomes, present, aborted = Engine(model, options), {}, [], set()
    coming = [f"{i}-{rng.randrange(seeds)}" for i in range(requests)]
    while coming or engine.busy:
        for _ in range(rng.choice((0, 0, 1, 3)) if engine.busy else 1):
            if coming:
                present.append(coming.pop())
                engine.add(present[-1], request(int(present[-1].split("-")[1])), priority=rng.choice((0, 0, 1)))
        if present and rng.random() < 0.05:
            victim = present.pop(rng.randrange(len(present)))
            if engine.abort(victim):
                aborted.add(victim)
        for outcome in engine.step():
            assert outcome.id not in outcomes
            outcomes[outcome.id] = outcome
    engine.close()
    assert outcomes.keys().isdisjoint(aborted)
    assert len(outcomes) + len(aborted) == requests
    return outcomes, aborted


@pytest.mark.parametrize(
    ("first", "schedules", "seeds"),
    [
        (0, 1, 12),
        pytest.param(1, 6, 12, marks=pytest.mark.slow),
        (1_888_700, 1, 24),  # requests in bfloat16 that changed each other on a CPU with AMX
        pytest.param(0, 20, 24, marks=pytest.mark.long),
        *(pytest.param(20 + 48 * i, 48, 24, marks=pytest.mark.long) for i in range(10)),
    ],
)
def test_every_schedule_draws_what_the_pipeline_draws(model, alone, first, schedules, seeds, first_seed):
    for seed in range(first_seed + first, first_seed + first + schedules):
        outcomes, _ = live(model, seed, seeds=seeds, requests=6)
        for id_, outcome in outcomes.items():
            assert outcome.error is None, f"schedule {seed}, request {id_}: {outcome.error}"
            expected = alone(int(id_.split("-")[1]))
            assert np.array_equal(outcome.image.pixels, expected), f"schedule {seed}, request {id_}"


def test_it_warns_of_what_the_pipeline_warns_of(model):
    asked = request(prompt="a fox and a dog " * 60, loras=(LoraUse("glow"),))
    expected = pipeline.generate(model, asked).warnings
    assert expected[0] == "the LoRA glow is used in part: 1 of its 7 layers are not in this model (another_models)"
    assert "too long" in expected[1]
    engine = Engine(model)
    engine.add("a", asked)
    assert drain(engine)["a"].image.warnings == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.long) for i in range(1, 5))])
def test_nano_draws_what_the_pipeline_draws(nano, seed, first_seed):
    seed += first_seed

    def request(seed: int) -> ImageRequest:
        return dataclasses.replace(asked(seed), loras=(), steps=3 + seed % 3)

    outcomes, _ = live(nano, seed, seeds=8, requests=5, request=request)
    for id_, outcome in outcomes.items():
        expected = pipeline.generate(nano, request(int(id_.split("-")[1]))).pixels
        assert np.array_equal(outcome.image.pixels, expected), f"schedule {seed}, request {id_}"
    assert outcomes or first_seed  # of a new schedule, all may be aborted


def request(**changes) -> ImageRequest:
    values = {"prompt": "a cat", "size": Size(128, 128), "seed": 1, "steps": 6, "render": Render.NATIVE, **changes}
    return ImageRequest(**values)


def drain(engine: Engine) -> dict[str, Outcome]:
    outcomes = {}
    while engine.busy:
        outcomes |= {outcome.id: outcome for outcome in engine.step()}
    return outcomes


def test_abort_takes_effect_within_a_step_and_frees_everything(model):
    engine = Engine(model, Options(tokens=4000, memory_bytes=2**33, together=True))
    steps = []
    engine.add("a", request(), steps.append)
    engine.add("b", request(seed=2))
    engine.step()
    assert engine.abort("a")
    assert not engine.abort("a")
    assert "a" not in engine._runner._running
    assert list(drain(engine)) == ["b"]
    assert len(steps) == 1
    engine.add("a", request())  # the id is free again
    assert drain(engine)["a"].image is not None


def test_a_short_request_overtakes_a_long_one(model):
    engine = Engine(model, Options(tokens=1, memory_bytes=2**33, together=True))
    engine.add("long", request(size=Size(384, 384), steps=20))
    engine.step()
    engine.add("short", request(steps=2))
    ends = [outcome.id for _ in range(22) for outcome in engine.step()]
    assert ends == ["short", "long"]


def test_a_request_of_higher_priority_overtakes_an_equal_one(model):
    engine = Engine(model, Options(tokens=1, memory_bytes=2**33, together=True))
    engine.add("usual", request(steps=4))
    engine.step()
    engine.add("urgent", request(steps=4), priority=1)
    engine.add("idle", request(steps=2), priority=-1)
    assert [outcome.id for _ in range(10) for outcome in engine.step()] == ["urgent", "usual", "idle"]


def test_progress_and_previews(model):
    engine = Engine(model, Options(tokens=1, memory_bytes=2**33, together=True))
    seen = []
    engine.add("a", request(size=Size(160, 128)), seen.append, wants_preview=lambda done: done % 2 == 0)
    drain(engine)
    assert [(each.done, each.of) for each in seen] == [(i, 6) for i in range(1, 7)]
    assert [each.preview is not None for each in seen] == [False, True, False, True, False, False]
    cells = 128 // model.vae.factor, 160 // model.vae.factor
    assert seen[1].preview.shape == (*cells, 3)


def test_the_images_of_a_task_share_one_init_image(model, monkeypatch):
    """They differ by their seeds; what else differs has an init image of its own."""
    opened = []
    monkeypatch.setattr(
        pipeline, "open_init_image", lambda *given: opened.append(given) or init_image.open_init_image(*given)
    )
    engine = Engine(model, Options(tokens=4000, memory_bytes=2**33, together=True))
    hole, bare = io.BytesIO(), request(image=None)
    Image.new("RGBA", (64, 64), (200, 30, 90, 0)).save(hole, "PNG")
    for seed in range(3):
        engine.add(str(seed), request(seed=seed, image=hole.getvalue()))
    engine.add("another strength", request(seed=1, image=hole.getvalue(), strength=0.5))
    engine.add("bare", bare)
    outcomes = drain(engine)
    assert sum(given[0].image is not None for given in opened) == 2
    assert np.array_equal(
        outcomes["1"].image.pixels, pipeline.generate(model, request(seed=1, image=hole.getvalue())).pixels
    )
    assert "image has transparent parts" in outcomes["2"].image.warnings[0]


def test_an_init_image_counts_in_the_memory_of_a_request(model):
    image = io.BytesIO()
    Image.new("RGBA", (64, 64), (200, 30, 90, 0)).save(image, "PNG")
    prepared = pipeline.prepare(model, request(image=image.getvalue()))
    runner = Runner(model, overlap=False, together=True, encoding=Lock())
    bare = dataclasses.replace(prepared, init_image=None)
    held = runner.work("a", prepared).memory_bytes - runner.work("b", bare).memory_bytes
    assert held == sum(size.width * size.height * (3 * 4 + 1 + 4) for size in prepared.init_image.layers)


def test_images_that_were_read_elsewhere_give_the_same(model):
    image = io.BytesIO()
    Image.new("RGB", (90, 64), (200, 30, 90)).save(image, "PNG")
    expected = pipeline.generate(model, request(image=image.getvalue()))
    engine = Engine(model, Options(tokens=4000, memory_bytes=2**33, together=True))
    elsewhere = request(image=b"")
    prepared = prepare(engine.init_image_sizes(elsewhere), image.getvalue(), None)
    for seed in "ab":
        engine.add(seed, elsewhere, init_image=prepared)
    assert all(np.array_equal(end.image.pixels, expected.pixels) for end in drain(engine).values())


def test_between_two_steps_it_may_let_the_device_go(model):
    entered = []

    @contextmanager
    def denoising():
        entered.append("in")
        yield
        entered.append("out")

    visited = dataclasses.replace(model, phases=Phases(denoising=denoising))
    engine = Engine(visited, Options(tokens=4000, memory_bytes=2**33, together=True))
    engine.add("a", request())
    engine.step()
    engine.step()
    assert entered == ["in"]
    engine.release_device()
    engine.release_device()
    assert entered == ["in", "out"]
    image = drain(engine)["a"].image
    assert entered == ["in", "out"] * 2
    assert np.array_equal(image.pixels, pipeline.generate(model, request()).pixels)


def test_a_request_that_fails_does_not_take_the_others_with_it(model, monkeypatch):
    engine = Engine(model, Options(tokens=4000, memory_bytes=2**33, together=True))

    def fail(_progress):
        raise InvalidInput("not any more")

    engine.add("progress fails", request(), fail)
    engine.add("fine", request(seed=5))
    real = model.transformer.velocity

    def poisoned(latents, *rest):
        if any(latent.isnan().any() for latent in latents):
            raise RuntimeError("out of memory")
        return real(latents, *rest)

    monkeypatch.setattr(model.transformer, "velocity", poisoned)
    engine.add("poison", request(seed=6))
    original = pipeline.initial_noise

    def noise(model, grid, generator):
        return original(model, grid, generator) * (float("nan") if generator.initial_seed() == 6 else 1)

    monkeypatch.setattr(pipeline, "initial_noise", noise)
    outcomes = drain(engine)
    assert isinstance(outcomes["progress fails"].error, InvalidInput)
    assert isinstance(outcomes["poison"].error, RuntimeError)
    assert outcomes["fine"].error is None
    monkeypatch.undo()
    assert np.array_equal(outcomes["fine"].image.pixels, pipeline.generate(model, request(seed=5)).pixels)


def test_bad_requests_are_refused_when_they_are_added(model):
    engine = Engine(model, Options(tokens=1, memory_bytes=2**33, together=True))
    with pytest.raises(InvalidInput, match="loras"):
        engine.add("a", request(loras=(LoraUse("nobody"),)))
    engine.add("a", request())
    with pytest.raises(InvalidInput, match="id"):
        engine.add("a", request())
    engine.close()
    assert not engine.busy


def test_a_request_larger_than_the_memory_is_drawn_alone(model):
    engine = Engine(model, Options(tokens=4000, memory_bytes=1, together=True))
    engine.add("a", request())
    engine.add("b", request(seed=2))
    engine.step()
    assert engine.waiting == 1
    assert drain(engine).keys() == {"a", "b"}


def test_a_size_that_can_never_fit_is_refused_by_name(model, monkeypatch):
    """Also on a device that is busy when it starts: what was free at any time counts."""
    monkeypatch.setattr(capacity, "_free_host_bytes", lambda: 300_000_000)
    engine = Engine(model, Options(tokens=4000, memory_bytes=2**33, together=True))
    engine.add("small", request(size=Size(256, 256)))
    large = request(size=Size(2048, 2048), render=Render.NATIVE)
    with pytest.raises(InvalidInput, match=r"^size is 2048\*2048: .* needs \d\.\d GB .* 0\.3 GB are available; accept"):
        engine.add("large", large)
    assert drain(engine).keys() == {"small"}
    monkeypatch.setattr(capacity, "_free_host_bytes", lambda: 2**40)
    engine.add("large", large)
    monkeypatch.setattr(capacity, "_free_host_bytes", lambda: 1)
    engine.add("large too", dataclasses.replace(large, seed=2))
    engine.close()


def test_decoding_in_tiles_needs_less(nano):
    prepared = pipeline.prepare(nano, request(size=Size(2048, 2048), render=Render.NATIVE))
    tiled = dataclasses.replace(nano, vae=dataclasses.replace(nano.vae, tile_px=512))
    options = Options(tokens=4000, memory_bytes=2**33, together=True)
    with closing(Engine(nano, options)) as engine, closing(Engine(tiled, options)) as in_tiles:
        assert in_tiles._runner.peak_bytes(prepared) * 4 < engine._runner.peak_bytes(prepared)


@pytest.mark.parametrize("bytes_", [2**55, 2**62])
def test_a_request_without_memory_fails_alone(model, bytes_):
    """2^55 bytes are refused by torch's allocator of the CPU, 2^62 by NumPy's."""
    engine = Engine(model, Options(tokens=4000, memory_bytes=2**33, together=True))

    def fill(_progress):
        torch.empty(bytes_, dtype=torch.uint8) if bytes_ < 2**60 else np.empty(bytes_, np.uint8)

    engine.add("a", request(), fill)
    engine.add("b", request(seed=2))
    outcomes = drain(engine)
    assert isinstance(outcomes["a"].error, RuntimeError | MemoryError)
    assert outcomes["b"].error is None


def test_a_repeated_prompt_is_encoded_once(nano):
    engine = Engine(nano, Options(tokens=4000, memory_bytes=2**33, together=True))
    before = len(nano.text.cache)
    for i in range(3):
        engine.add(str(i), request(prompt="a prompt that nobody has asked for", seed=i, steps=1))
    drain(engine)
    assert len(nano.text.cache) - before == 4  # one of each encoder


@pytest.mark.slow
def test_the_budget_is_measured(model):
    assert measure(model).same_bits
    engine = Engine(model)
    assert engine.limits.tokens > 0
    assert engine.limits.memory_bytes > 0
    engine.close()


def test_variants_of_other_samplers_share_a_batch(model):
    """A batch may hold any steps, samplers and sizes at once: all of them take part in one step."""
    engine = Engine(model, Options(tokens=10_000, memory_bytes=2**33, together=True))
    requests = [request(sampler=s, size=Size(128, 32 * (4 + i)), steps=3) for i, s in enumerate(Sampler)]
    for i, each in enumerate(requests):
        engine.add(str(i), each)
    ends = [len(engine.step()) for _ in range(3)]
    assert ends == [0, 0, 3]
    assert model.variant is Variant.DEV


def test_an_image_that_is_not_finite_fails_alone(model, alone, tmp_path):
    """A LoRA takes one request out of the range of numbers; what is computed beside it keeps its bits."""
    layer = "diffusion_model.double_stream_blocks.0.block.attn1.to_out"
    large = {f"{layer}.lora_A.weight": torch.full((2, 128), 1e15), f"{layer}.lora_B.weight": torch.full((128, 2), 1e15)}
    save_file(large, tmp_path / "glare.safetensors")
    hot = dataclasses.replace(model, loras=LoraFolder(tmp_path, layers(model.transformer)))
    engine, beside = Engine(hot, Options(tokens=2000, memory_bytes=2**33)), [s for s in range(30) if not asked(s).loras]
    engine.add("glare", dataclasses.replace(asked(3), mode=Mode.EXACT, loras=(LoraUse("glare", 10.0),), steps=4))
    for seed in beside[:3]:
        engine.add(str(seed), asked(seed))
    outcomes = {outcome.id: outcome for _ in iter(lambda: engine.busy, False) for outcome in engine.step()}
    assert isinstance(outcomes.pop("glare").error, NotFinite)
    for seed, outcome in outcomes.items():
        assert np.array_equal(outcome.image.pixels, alone(int(seed)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"guidance": 3.0}, {"mode": Mode.TURBO, "steps": 12}, {"render": Render.REFINE, "size": Size(384, 320)}],
    ids=str,
)
def test_a_request_counts_as_the_tokens_it_computes_and_the_bytes_it_holds(model, changes):
    prepared = pipeline.prepare(model, request(**changes))
    runner = Runner(model, overlap=False, together=True, encoding=Lock())
    work, computed, held = runner.work("a", prepared), [], {}
    assert not runner.begin({"a": (prepared, lambda *_: None)})
    while "a" in runner._running:
        evaluation = runner._running["a"].evaluation
        kept = evaluation.conditioning
        computed.append(kept.txt.shape[0] * sum(kept.tokens))
        wide = model.dtype.itemsize // evaluation.latent.itemsize  # a mode may compute in half of what is counted
        measured = kept.txt.nbytes + kept.block_txt.nbytes
        text_bytes = measured * TEXT_TOKENS // model.text.tokens  # as if it were longest
        held[kept.tokens] = wide * text_bytes + LATENTS * 4 * evaluation.latent[0].numel()
        held[len(computed)] = wide * evaluation.modulation.nbytes
        assert not runner.step(["a"])[1]
    assert work.steps == tuple(computed)
    assert work.memory_bytes == sum(held.values())


def test_a_request_that_waits_holds_no_copies_of_its_loras(model):
    """Tensors that it would hold beside those that the folder of LoRAs keeps: none, until it is denoised."""
    engine = Engine(model, Options(tokens=1, requests=1, memory_bytes=2**33, together=True))
    adapted = request(mode=Mode.TURBO, steps=12, loras=(LoraUse("glow"), LoraUse("glow", 0.5)))
    engine.add("first", request(seed=2, steps=2))
    engine.step()
    with LiveBytes() as live:
        engine.add("adapted", adapted)
        assert live.peak > 0  # they are checked
        assert live.now == 0
    prepared = engine._active["adapted"].prepared
    while engine.waiting:
        engine.step()
    layers = engine._runner._running["adapted"].evaluation.conditioning.deltas.values()
    copies = [getattr(delta, field.name) for each in layers for delta in each for field in dataclasses.fields(delta)]
    plain = pipeline.prepare(model, dataclasses.replace(adapted, loras=()))
    held = sum(copy.nbytes for copy in copies)
    assert held == engine._runner.work("", prepared).memory_bytes - engine._runner.work("", plain).memory_bytes
    made = [weakref.ref(copy) for copy in copies if copy.dtype is torch.bfloat16]  # others may be the folder's own
    assert made
    del copies, layers
    drain(engine)
    gc.collect()
    assert all(copy() is None for copy in made)


def test_what_a_lora_holds_is_counted(model):
    """Its matrices, in float32; a LoRA that is named twice is there twice."""
    runner, request = Engine(model, Options(tokens=2000, memory_bytes=2**33))._runner, asked(1)
    plain, once, twice = (
        runner.work(
            "id", pipeline.prepare(model, dataclasses.replace(request, mode=Mode.EXACT, loras=loras))
        ).memory_bytes
        for loras in ((), (LoraUse("glow"),), (LoraUse("glow"),) * 2)
    )
    values = sum(2 * (o + i) for o, i in ((128, 128), (512, 128), (128, 128), (4, 128), (256, 128)))
    values += 2 * 3 * (512 + 128)  # LoHa
    assert once - plain == 4 * values
    assert twice - plain == 8 * values
