"""The whole training, a few steps of each stage: what it leaves, the product and stock diffusers draw with.

Made-up sprites stand for the fetched ones, so that no network is needed. The autoencoder has fewer levels than the
shipped recipe's, so the best square has 128 pixels a side, not 512: encoding the looks of objects takes longest.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, HiDreamImagePipeline

import autoencoder
import classifiers
import compose
import distill
import encoders
import evaluate
import folders
import latents
import placement
import pretrain
import recipe
import shipped
import stage
import words
from concepts import load_concepts
from features import image_tokens
from hidream.formats.detect import read
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded
from hidream.model.latents.shape import Grid
from hidream.model.loading import load
from hidream.model.network.moe import balance_losses
from hidream.model.network.transformer import Transformer
from hidream.model.pipeline import generate
from hidream.model.text.text_encoders import load_text_encoders
from hidream.request import ImageRequest
from hidream.types import Mode, Size, Variant
from questions import token_truths
from scenes import Extent

pytestmark = pytest.mark.timeout(900)  # all stages in one set-up: minutes on a CPU without AVX-512
CPU = torch.device("cpu")
TINY = """
seed = 1
[autoencoder]
widths = [8, 16, 16, 32]
encoder_layers = [1, 1, 1, 1]
decoder_layers = [1, 1, 1, 1]
latent_channels = 8
muon_rate = 1e-2
adamw_rate = 1e-3
phases = [
    { side = 64, batch = 2, steps = 2 },
    { side = 128, batch = 1, steps = 1, noise = 0.05, sharpness = 0.1 },
]
[text]
tokens = 16
vocabulary = 400
captions = 200
clip_width = 64
clip_layers = 1
t5_width = 64
t5_layers = 1
llama_width = 64
muon_rate = 1e-2
adamw_rate = 1e-3
batch = 4
steps = 2
looks = 10.0
[pool]
start = 16
per_step = 8
most = 40
[words]
muon_rate = 1e-2
adamw_rate = 1e-3
batch = 3
steps = 2
[transformer]
num_layers = 1
num_single_layers = 2
num_attention_heads = 2
attention_head_dim = 32
axes_dims_rope = [16, 8, 8]
max_resolution = [64, 64]
[pretrain]
adamw_rate = 1e-3
muon_rate = 1e-2
muon_every = 2
warm_up = 2
fall = 0.5
ema = 0.5
batch = 2
steps = 4
caption_dropout = 0.1
balance = 0.01
square = 0.5
reading = 0.1
reading_block = 1
object_weights = { small = 6.0, normal = 2.0, big = 4.0 }
[distill.dev]
guidance = 5.0
steps = 2
muon_rate = 1e-2
adamw_rate = 1e-4
batch = 2
[distill.fast]
guidance = 5.0
steps = 1
muon_rate = 1e-2
adamw_rate = 1e-4
batch = 2
[judge]
muon_rate = 1e-2
adamw_rate = 1e-3
batch = 2
steps = 2
[run]
checkpoint_s = 0
log_every = 1
compiled = false
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "config.toml"
    file.write_text(TINY)
    return recipe.load(file)


@pytest.fixture(scope="module", autouse=True)
def sprites():
    """Discs, one colour for each object, drawn alike in every style."""
    concepts = load_concepts()
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = ((x - 15.5) ** 2 + (y - 15.5) ** 2 < 14**2).to(torch.uint8)
    colours = torch.randint(256, (len(concepts.objects), 1, 3, 1, 1), generator=generator, dtype=torch.uint8)
    images = torch.cat((colours * disc, 255 * disc.expand(len(concepts.objects), 1, 1, 32, 32)), dim=2)
    made = compose.Sprites(images.repeat(1, len(concepts.styles), 1, 1, 1), concepts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose.Sprites, "load", staticmethod(lambda device="cpu": made))
        patch.setattr(autoencoder, "CALIBRATION", 8)
        patch.setattr(classifiers, "HELD_OUT_IMAGES", 2)
        patch.setattr(words, "CAPTIONS", 2000)
        yield made


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> Path:
    """Every stage, run once."""
    runs = tmp_path_factory.mktemp("runs")
    autoencoder.train(tiny, runs / "autoencoder", CPU)
    encoders.train(tiny, runs, runs / "encoders", CPU)
    words.train(tiny, runs, runs / "text", CPU)
    pretrain.train(tiny, runs, runs / "pretrain", CPU)
    distill.train(tiny, Variant.DEV, runs, runs / "dev", CPU)
    distill.train(tiny, Variant.FAST, runs, runs / "fast", CPU)
    classifiers.train(tiny, runs / "judge", CPU)
    folders.assemble(runs, runs / "nano")
    return runs


def test_the_product_draws_with_every_variant(runs):
    for variant in Variant:
        model = load(variant, embedded(variant, runs / "nano"))
        assert model.text.tokens == 16
        assert model.token_px == 16
        assert model.best_tokens == 64
        image = generate(model, ImageRequest("a red cat", Size(512, 512), seed=1, steps=2))
        assert image.pixels.shape == (512, 512, 3)


def test_variants_share_all_but_the_transformer(runs):
    assert not (runs / "nano" / "full" / "vae").exists()
    assert not (runs / "nano" / "fast" / "text_encoder").exists()
    files = [next((runs / "nano" / variant / "transformer").glob("*.safetensors")) for variant in Variant]
    assert [file.name for file in files].count("difference.safetensors") == 2
    assert len({file.read_bytes() for file in files}) == 3


def test_stock_diffusers_draws_with_it(tiny, runs):
    pipeline = HiDreamImagePipeline.from_pretrained(runs / "nano" / "dev", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.default_sample_size = folders.SAMPLE_SIZE
    images = pipeline("a cat", num_inference_steps=1, guidance_scale=0.0, max_sequence_length=16).images
    assert images[0].size == (tiny.side_px, tiny.side_px) == (128, 128)


def test_logs_and_plots_are_kept(runs):
    for name in ("autoencoder", "encoders", "text", "pretrain", "dev", "judge"):
        lines = [json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()]
        assert all(line["step"] == i + 1 for i, line in enumerate(lines))
        assert (runs / name / "loss.png").stat().st_size > 1000


def test_a_killed_stage_goes_on_where_it_was(tiny, runs, tmp_path, monkeypatch):
    report = stage.Stage.report

    def killed(self, **losses):
        if self.step == 2:
            raise KeyboardInterrupt
        report(self, **losses)

    monkeypatch.setattr(stage.Stage, "report", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(tiny, runs, tmp_path, CPU)
    monkeypatch.undo()
    pretrain.train(tiny, runs, tmp_path, CPU)
    resumed, whole = (torch.load(f / "checkpoint.pt") for f in (tmp_path, runs / "pretrain"))
    assert resumed["step"] == whole["step"] == 4
    for name, value in whole["parts"]["transformer"].items():
        torch.testing.assert_close(resumed["parts"]["transformer"][name], value, rtol=1e-4, atol=1e-5)


def test_stages_go_on_from_the_shipped_nano(tiny, runs, tmp_path):
    shipped.restore(runs / "nano", tmp_path, [])
    classifiers.train(tiny, tmp_path / "judge", CPU)
    assert classifiers.load(tmp_path / "judge", load_concepts(), CPU)
    for train, name in ((encoders.train, "encoders"), (words.train, "text"), (pretrain.train, "pretrain")):
        train(tiny, tmp_path, tmp_path / name, CPU)  # done already
    for variant in (Variant.DEV, Variant.FAST):
        distill.train(tiny, variant, tmp_path, tmp_path / variant, CPU)
    assert not list(tmp_path.rglob("log.jsonl"))
    folders.assemble(tmp_path, tmp_path / "nano")
    files = [file.relative_to(runs / "nano") for file in (runs / "nano").rglob("*") if file.is_file()]
    assert len(files) > 20
    assert all((tmp_path / "nano" / file).read_bytes() == (runs / "nano" / file).read_bytes() for file in files)


def test_full_goes_on_from_its_shipped_weights(tiny, runs, tmp_path):
    shipped.restore(runs / "nano", tmp_path, [Variant.FULL])
    assert not (tmp_path / "pretrain" / "done").exists()
    assert not (tmp_path / "dev").exists()
    started = pretrain.build(tiny, tmp_path / "pretrain" / pretrain.START).state_dict()
    whole = torch.load(runs / "pretrain" / "checkpoint.pt")["parts"]["average"]
    kept = read(runs / "nano" / "full" / "transformer").tensors
    assert started.keys() == kept.keys()
    for name, value in started.items():
        torch.testing.assert_close(value, kept[name].float(), rtol=0, atol=0)
        off = (value - whole[f"module.{name}"]).norm() / value.norm()
        assert off <= 0.01, name  # six bits of the difference to Dev


def test_words_can_be_taught_again(tiny, runs, tmp_path):
    shipped.restore(runs / "nano", tmp_path, [shipped.WORDS])
    words.train(tiny, tmp_path, tmp_path / "text", CPU)
    folders.assemble(tmp_path, tmp_path / "nano")
    for part, stays in (("vae", True), ("transformer", True), ("text_encoder_3", False)):
        old, new = (next((f / "nano" / "dev" / part).glob("*.safetensors")).read_bytes() for f in (runs, tmp_path))
        assert (old == new) is stays


def test_a_noun_is_to_say_what_its_stand_in_says(runs):
    tokenizer = load_text_encoders(Checkpoint(runs / "text"), CPU, torch.float32).tokenizers[2]
    told = words.Lesson("a big ", "qxwizard", "cat", " in the snow")
    text, meaning = (tokenizer(words, padding="max_length").input_ids for words in (told.text, told.meaning))
    partners = words.partners(told, tokenizer, 16)
    start, said, meant = (len(tokenizer(noun).input_ids) - 1 for noun in ("a big", "qxwizard", "cat"))  # less the end
    assert said > meant
    assert partners[:start] == list(range(start))
    noun, after = partners[start : start + said], partners[start + said :]
    assert noun == [start] * (said - meant) + list(range(start, start + meant))
    assert after == list(range(start + meant, 16 - said + meant))
    assert text[start + said :] == [meaning[i] for i in after]


def test_lessons_are_of_unknown_nouns_and_of_synonyms(runs):
    concepts, rng = load_concepts(), random.Random(0)
    tokenizer = load_text_encoders(Checkpoint(runs / "text"), CPU, torch.float32).tokenizers[2]
    stand_ins = words.StandIns(tokenizer, concepts)
    told = [words.lesson(scene, rng, stand_ins, concepts) for scene in latents.draw_scenes(0, 400, concepts)]
    assert all(each.meant in concepts.objects and words.NOUN not in each.text + each.meaning for each in told)
    known = [each for each in told if each.said.endswith(concepts.objects[each.meant].words)]
    assert 100 < len(known) < 300
    assert 10 < sum(each.said not in concepts.objects[each.meant].words for each in known) < 100  # with an adjective
    assert {each.said for each in told}.isdisjoint(concepts.fillers.held_out_nouns)
    assert all(stand_ins.of(each.said) == each.meant for each in told if each not in known)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own look at it
def test_compiled_blocks_learn_the_same(tiny):
    def gradients(transformer):
        torch.manual_seed(0)
        inputs = (torch.randn(2, 8, 16, 16), torch.rand(2), torch.randn(2, 16, 64))
        embeds = (torch.randn(3, 2, 16, 64), torch.randn(2, 128))
        with balance_losses(transformer) as balance, image_tokens(transformer, 2, 64) as tokens:
            velocity = transformer(*inputs, *embeds)
        assert len(balance) == len(tokens) == 3
        (velocity.square().mean() + torch.stack(balance).mean() + tokens[1].square().mean()).backward()
        return {name: p.grad for name, p in transformer.named_parameters() if p.grad is not None}

    torch.manual_seed(0)
    plain, compiled = Transformer(tiny.transformer), Transformer(tiny.transformer)
    compiled.load_state_dict(plain.state_dict())
    stage.compile_blocks(compiled, backend="aot_eager")
    wanted = gradients(plain)
    for name, value in gradients(compiled).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5)


def test_centring_changes_nothing_but_the_latents_means(runs, sprites):
    torch.manual_seed(0)
    module = AutoencoderDC.from_config(AutoencoderDC.load_config(runs / "autoencoder" / "vae"))
    images = torch.rand(2, 3, 512, 512) * 2 - 1
    with torch.no_grad():
        before = module(images).sample
        autoencoder.centre(module, images)
        latent = module.encode(images).latent * module.config.scaling_factor
        after = module(images).sample
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(latent.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    inner = (..., slice(240, 272), slice(240, 272))  # away from the borders, which the padding changes
    torch.testing.assert_close(after[inner], before[inner], atol=1e-3, rtol=1e-3)


def test_evaluation_scores_the_judge_and_a_variant(runs, sprites, tmp_path):
    concepts, judge = load_concepts(), classifiers.load(runs / "judge", load_concepts(), CPU)
    model = load(Variant.DEV, runs / "nano" / "dev")
    report = evaluate.score_judge(model, judge, concepts, sprites)
    assert report["weak"]  # two steps of training make no judge
    score = evaluate.score_model(model, judge, concepts, 7, tmp_path / "sheet.png", steps=1)
    assert (score["version"], score["mode"], score["steps"]) == (model.version, "exact", 1)
    assert score["scores"]["all"]["count"] == 7
    assert score["scores"]["style, square"]["count"] == 3
    assert 0 < score["scores"]["unknown"]["count"] <= 7  # some begin as a known word does
    assert (tmp_path / "sheet.png").exists()


def test_evaluation_of_a_mode_draws_in_it_and_says_so(runs, monkeypatch, capsys):
    drawn = []

    def noting(model, request):
        drawn.append(request.mode)
        return generate(model, request)

    monkeypatch.setattr(evaluate, "generate", noting)
    folders = ["--runs", str(runs), "--device", "cpu"]
    monkeypatch.setattr(
        "sys.argv", ["evaluate.py", *folders, "--variants", "dev", "--steps", "1", "--prompts", "2", "--mode", "turbo"]
    )
    evaluate.main()
    assert drawn == [Mode.TURBO] * 4  # two prompts, and two nouns that nano does not know
    report = json.loads((runs / "evaluation" / "report-turbo.json").read_text())
    table = (runs / "evaluation" / "report-turbo.md").read_text()
    assert table in capsys.readouterr().out
    shown = "{share:.1%} ({low:.0%}–{high:.0%})".format(**report["dev"]["scores"]["style"])
    assert any(line.startswith("| style |") and line.endswith(f" {shown} |") for line in table.splitlines())
    assert report["dev"]["mode"] == "turbo"
    assert "/turbo" in report["dev"]["version"]
    assert (runs / "evaluation" / "dev-turbo.png").exists()


def test_interval_is_wilsons():
    assert evaluate.interval(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-3)
    assert evaluate.interval(0, 10)[0] == 0


def test_the_shipped_recipe_can_be_built_and_fits_its_bounds():
    config = recipe.load()
    module, side = autoencoder.build(config.autoencoder), config.side_px
    with torch.no_grad():
        latent = module.encode(torch.zeros(1, 3, side, side)).latent
        assert latent.shape == (1, config.autoencoder.latent_channels, 16, 16)
        assert module.decode(latent).sample.shape == (1, 3, side, side)
    text = encoders.build(
        dataclasses.replace(config, text=dataclasses.replace(config.text, captions=500)), load_concepts()
    )
    transformer = pretrain.build(config)
    with torch.no_grad():
        conditioning = transformer.condition(*text.encode(["a cat"]), Grid(8, 8))
        velocity = transformer.velocity_at(latent, torch.tensor([500.0]), conditioning)
    assert velocity.shape == latent.shape
    wholes = (module, torch.nn.ModuleList(text.encoders), transformer)
    parameters = [sum(p.numel() for p in whole.parameters()) for whole in wholes]
    assert parameters[2] <= 14_000_000
    assert 2 * (parameters[0] + parameters[1] + 3 * parameters[2]) <= 100e6  # bytes of all variants in 16 bit
    assert config.pretrain.reading_block < len(transformer.blocks)
    assert config.transformer.max_tokens >= max(grid.rows * grid.columns for grid in latents.shapes(32))


def test_tokens_show_what_stands_there(sprites):
    """Images of discs on drawn grounds: the middle of an object is its colour, by the numbers of its tokens."""
    concepts, grid, px = load_concepts(), Grid(8, 12), 32
    scenes = latents.draw_scenes(3, 16, concepts, grid.columns / grid.rows)
    shown, part = token_truths(scenes, grid, concepts).view(16, 2, 8, 12).unbind(1)
    images = compose.compose(scenes, sprites, grid, px, 5)
    for image, tokens, parts, scene in zip(images, shown, part, scenes, strict=True):
        numbers = [sprites.objects[name] for name in scene.objects]
        assert set(tokens.unique().tolist()) == {*numbers, 128 + list(concepts.backgrounds).index(scene.background)}
        assert torch.equal(parts > 0, tokens < 128)
        behind_middle = torch.tensor([placement.part_of(s, s // 2, s // 2) for s in placement.SIZES.values()])
        rows, columns = torch.isin(parts, behind_middle).nonzero(as_tuple=True)
        assert len(rows) == scene.count * len(scene.objects)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            colour = sprites.levels[0][tokens[row, column], 0, :3, 16, 16].float() / 127.5 - 1
            torch.testing.assert_close(image[:, row * px, column * px], colour, atol=0.02, rtol=0)


def test_objects_weigh_in_the_loss_what_the_recipe_says():
    grid, first = Grid(2, 3), placement.part_of(2, 0, 0)
    part = torch.tensor([[0, first, first + 1, 0, first + 2, first + 3], [0] * 6])
    batch = latents.Batch(torch.zeros(2, 4, 4, 6), ["", ""], grid, [], part, part, torch.zeros(2))
    weights = pretrain.weights_of(batch, {Extent.SMALL: 6.0, Extent.NORMAL: 2.0, Extent.BIG: 4.0})
    assert weights.mean() == pytest.approx(1)
    assert torch.equal(weights[0, 0, :2] / weights[0, 0, 0, 0], torch.tensor([[1.0, 1, 6, 6, 6, 6]] * 2))
    assert torch.equal(weights[1], weights[0, :, :, :2].repeat(1, 1, 3))
    errors = torch.zeros(2, 4, 4, 6)
    errors[1] = 2
    expected = 4 * weights[1].mean() / 2
    assert pretrain.drawing_loss(errors, torch.zeros_like(errors), weights) == pytest.approx(float(expected))


def test_parts_of_objects_have_numbers_of_their_own():
    sizes = placement.SIZES.values()
    numbers = [placement.part_of(size, row, column) for size in sizes for row in range(size) for column in range(size)]
    assert sorted(numbers) == list(range(1, placement.PARTS))
