"""From settings to a model: what is set arrives, and a limit that leaves nothing is refused."""

from __future__ import annotations

import pytest
import torch

from hidream import settings
from hidream.errors import ConfigurationError
from hidream.model.loading import DTYPES
from hidream.settings import Compute, Models, Settings
from hidream.types import Storage, Variant
from hidream.worker.loading import load_configured


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


@pytest.mark.parametrize(
    ("key", "names"), [("dtype", ["auto", *DTYPES]), ("storage", ["auto", *Storage]), ("device", ["auto", "cpu"])]
)
def test_settings_accept_what_the_model_does(key, names):
    for name in names:
        config = settings.load({"HIDREAM_HOME": "/nowhere"}, {"compute": {key: str(name)}})
        assert getattr(config.compute, key) == name
