"""Invalid or inconsistent numbers of a transformer are named."""

from __future__ import annotations

import json

import pytest

from hidream.errors import CheckpointError
from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.network.config import TransformerConfig
from hidream.types import Variant

NANO = json.loads((embedded(Variant.DEV).folder / "transformer" / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama_layers": 5}, "llama_layers = 5; accepted: some whole numbers from 0 to 65536"),
        ({"llama_layers": [0, 1, 2, -7]}, "llama_layers = .0, 1, 2, -7.; accepted"),
        ({"axes_dims_rope": "a"}, "axes_dims_rope = 'a'; accepted: 3 whole numbers from 1 to 65536"),
        ({"axes_dims_rope": [64]}, "axes_dims_rope = .64,.; accepted: 3"),
        ({"caption_channels": [1]}, "caption_channels = .1,.; accepted: 2"),
        ({"max_resolution": 3}, "max_resolution = 3; accepted: 2"),
        ({"num_layers": "x"}, "num_layers = 'x'; accepted: a whole number from 0 to 65536"),
        ({"num_layers": -1}, "num_layers = -1; accepted"),
        ({"patch_size": 0}, "patch_size = 0; accepted: a whole number from 1 to 65536"),
        ({"num_attention_heads": 2.5}, "num_attention_heads = 2.5; accepted"),
        ({"in_channels": "16"}, "in_channels = '16'; accepted"),
        ({"text_emb_dim": True}, "text_emb_dim = True; accepted"),
        ({"num_activated_experts": 9}, "num_activated_experts is 9; accepted: at most num_routed_experts = 8"),
    ],
)
def test_a_number_that_is_none_is_named(changes, message):
    TransformerConfig.from_json(NANO)
    with pytest.raises(CheckpointError, match=message):
        TransformerConfig.from_json(NANO | changes)
