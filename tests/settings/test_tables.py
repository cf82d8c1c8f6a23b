"""The tables: defaults are accepted values, the docs state each range, and secrets are not shown."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from every_setting import HINTS, NUMBERS

from hidream.errors import ConfigurationError
from hidream.settings import sources, tables
from hidream.settings.tables import Models
from hidream.types import Variant


def test_every_default_is_accepted():
    for table, kind in tables.TABLES.items():
        for field in dataclasses.fields(kind):
            accepted = HINTS[table, field.name][1]
            assert field.default is None or accepted.holds(field.default), f"{table}.{field.name}"


@pytest.mark.parametrize(("table", "key", "kind", "accepted"), NUMBERS)
def test_the_docs_say_each_range(table, key, kind, accepted):
    text = (Path(__file__).parents[2] / "docs" / "SETTINGS.md").read_text()
    section = text.split(f"| `[{table}]` |")[1].split("\n\n")[0]
    (row,) = re.findall(rf"^\| `{key}` \|.*", section, re.MULTILINE)
    assert f"{accepted.smallest:,} to {accepted.largest:,}" in row


def test_parts_of_a_model_are_named_one_by_one():
    models = Models(dev=Path("/dev.gguf"), clip_l=Path("/l.safetensors"))
    assert models.configured == {Variant.DEV: Path("/dev.gguf")}
    assert models.parts(Variant.DEV) == {"folder": Path("/dev.gguf"), "clip_l": Path("/l.safetensors")}
    with pytest.raises(ConfigurationError, match="fast"):
        models.parts(Variant.FAST)
    assert Models(vae=Path("/vae")).parts(Variant.DEV) == {"vae": Path("/vae")}  # of the embedded model
    assert Models().parts(Variant.FULL) == {}


def test_all_state_lies_under_the_home(tmp_path):
    config = sources.load({"HIDREAM_HOME": str(tmp_path)})
    assert str(tmp_path) in config.database_url
    assert Path(config.outputs_url).is_relative_to(tmp_path)
    assert not any(tmp_path.iterdir())  # reading settings makes nothing
