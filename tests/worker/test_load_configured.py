"""From settings to models: settings take effect, equal parts are shared, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import hidream
from hidream.engine import capacity
from hidream.errors import ConfigurationError
from hidream.model.memory.hardware import hardware_of
from hidream.model.resolve import DTYPES, HOST
from hidream.settings import sources
from hidream.settings.tables import Compute, Engine, Models, Settings, Worker
from hidream.types import Variant, WeightFormat
from hidream.worker import loading
from hidream.worker.loading import engines_of, load_configured, load_served, served, sources_configured

NANO = Path(hidream.__file__).parent / "nano"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_what_is_set_arrives(tmp_path, threads):
    compute = Compute(device="cpu", dtype="bfloat16", storage="int8", threads=3)
    model = load_configured(Variant.DEV, Settings(home=tmp_path, compute=compute))
    assert model.version.split("/")[3] == "cpu-bfloat16-int8"
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("memory_gb", [1.0, 3.0])
def test_a_limit_that_leaves_nothing_is_refused(tmp_path, memory_gb):
    compute = Compute(device="cpu", memory_gb=memory_gb)
    with pytest.raises(ConfigurationError, match=f"memory_gb is {memory_gb:g}, and 3 GB are set aside"):
        load_configured(Variant.DEV, Settings(home=tmp_path, compute=compute))


def test_a_variant_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no checkpoint is configured for full"):
        load_configured(Variant.FULL, Settings(home=tmp_path, models=Models(dev=tmp_path)))


def test_a_part_that_is_named_beside_the_embedded_model_is_used(tmp_path):
    shutil.copytree(NANO / "dev" / "vae", tmp_path / "vae")
    settings = Settings(home=tmp_path, models=Models(vae=tmp_path / "vae"))
    assert sources_configured(Variant.FULL, settings)["vae"].path == tmp_path / "vae"
    assert sources_configured(Variant.FULL, settings)["transformer"].path == NANO / "full" / "transformer"
    for field in ("llama", "t5", "clip_l", "clip_g", "vae", "tokenizers"):
        with pytest.raises(ConfigurationError, match="nowhere, named for "):
            load_configured(Variant.DEV, Settings(home=tmp_path, models=Models(**{field: tmp_path / "nowhere"})))


@pytest.mark.parametrize(
    ("key", "names"), [("dtype", ["auto", *DTYPES]), ("storage", ["auto", *WeightFormat]), ("device", ["auto", "cpu"])]
)
def test_settings_accept_what_the_model_does(key, names):
    for name in names:
        config = sources.load({"HIDREAM_HOME": "/nowhere"}, {"compute": {key: str(name)}})
        assert getattr(config.compute, key) == name


# --- several variants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "serves", "expected"),
    [
        (Models(), "", [Variant.DEV, Variant.FULL, Variant.FAST]),
        (Models(), "full", [Variant.FULL]),
        (Models(), "full,dev", [Variant.FULL, Variant.DEV]),
        (Models(fast=Path("/f")), "", [Variant.FAST]),
        (Models(dev=Path("/d"), fast=Path("/f")), "", [Variant.DEV, Variant.FAST]),
        (Models(dev=Path("/d"), fast=Path("/f")), "fast, fast", [Variant.FAST]),
    ],
)
def test_what_is_served_is_what_is_named_or_all_there_is(tmp_path, models, serves, expected):
    assert served(Settings(home=tmp_path, models=models, worker=Worker(serves=serves))) == expected


@pytest.mark.slow
def test_text_encoders_of_the_same_files_are_there_once(tmp_path):
    models = load_served(Settings(home=tmp_path, compute=Compute(device="cpu", texts_together="on")))
    dev, full = models[Variant.DEV], models[Variant.FULL]
    assert dev.text is full.text
    assert dev.text.together
    assert dev.transformer is not full.transformer
    assert dev.version != full.version


@pytest.mark.slow
def test_text_encoders_of_other_files_are_others(tmp_path):
    shutil.copytree(NANO / "dev", tmp_path / "full", ignore=shutil.ignore_patterns("transformer"))
    shutil.copytree(NANO / "full", tmp_path / "full", dirs_exist_ok=True)  # with parts of its own: nothing is lent
    shutil.copytree(NANO / "dev" / "transformer", tmp_path / "dev" / "transformer")  # its base
    config = Settings(home=tmp_path, models=Models(dev=NANO / "dev", full=tmp_path / "full"))
    models = load_served(config)
    assert models[Variant.DEV].text is not models[Variant.FULL].text


@pytest.mark.slow
def test_engines_share_the_memory_and_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "_free_host_bytes", lambda: 8_000_000_000)  # others take and free memory meanwhile
    measured = []
    measure = loading.Engine.__init__.__globals__["measure"]
    monkeypatch.setitem(
        loading.Engine.__init__.__globals__, "measure", lambda model: measured.append(model) or measure(model)
    )
    models = load_served(Settings(home=tmp_path, compute=Compute(device="cpu")))
    engines = engines_of(models, Engine())
    assert measured == [models[Variant.DEV]]
    dev, full = engines[Variant.DEV], engines[Variant.FULL]
    assert dev.limits.tokens == full.limits.tokens
    assert dev._runner._encoding is full._runner._encoding, "text encoders that are shared are for one at a time"
    alone = engines_of({Variant.DEV: models[Variant.DEV]}, Engine(tokens_per_step=dev.limits.tokens))
    assert dev.limits.memory_bytes < 0.7 * alone[Variant.DEV].limits.memory_bytes


def test_what_is_beside_takes_its_share_of_a_limit(tmp_path):
    config = Settings(home=tmp_path, compute=Compute(device="cpu", memory_gb=3.9))
    dev = load_configured(Variant.DEV, config)
    nbytes = sum(p.nbytes for module in (dev.transformer, dev.vae.module) for p in module.parameters())
    left_gb = loading._remaining_gb(config.compute, [dev], [dev])
    assert left_gb == pytest.approx(3.9 - nbytes / 1e9, abs=0.001)
    assert loading._remaining_gb(config.compute, [dev], []) < left_gb - 0.003, "its text encoders would be there twice"


@pytest.mark.parametrize(
    ("beside_gb", "said"),
    [
        (0.9, r"^full beside dev: the model does not fit into the available memory.*; accepted: fewer variants in `\["),
        (4.0, r"^full beside dev: dev take 4\.\d GB, and 3\.9 GB are available; accepted: fewer variants"),
    ],
)
def test_what_does_not_fit_beside_others_is_refused(tmp_path, beside_gb, said):
    config = Settings(home=tmp_path, compute=Compute(device="cpu", memory_gb=3.9))
    dev = load_configured(Variant.DEV, config)
    with pytest.raises(ConfigurationError, match=said):
        load_configured(Variant.FULL, config, [_heavier(dev, beside_gb)])


def test_more_together_than_the_machine_has_is_refused(tmp_path):
    dev = load_configured(Variant.DEV, Settings(home=tmp_path, compute=Compute(device="cpu")))
    there_gb = hardware_of(HOST, 0).host_budget / 1e9
    loading._check_together([_heavier(dev, there_gb)])
    loading._check_together([_heavier(dev, there_gb / 3), _heavier(dev, there_gb / 3)])
    with pytest.raises(ConfigurationError, match=r"^dev, dev take .* of the machine's memory together"):
        loading._check_together([_heavier(dev, there_gb / 1.9), _heavier(dev, there_gb / 1.9)])


def _heavier(model, gb):
    """One whose transformer says that it takes so much, and takes nothing."""
    heavy = torch.nn.Module()
    heavy.weight = torch.nn.Parameter(torch.empty(1).expand(round(gb * 1e9 / 4)), requires_grad=False)
    return dataclasses.replace(model, transformer=heavy)
