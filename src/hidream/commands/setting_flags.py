"""Flags that are settings: derived from `settings/tables.py`, and left as texts, which `settings/sources.py` checks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from hidream.commands.grammar import Flag, Given
from hidream.commands.values import OneOf
from hidream.errors import HiDreamError
from hidream.parts import NAMED_ALONE
from hidream.settings.sources import flag_name
from hidream.settings.tables import TABLES, Settings
from hidream.types import Variant, WeightFormat

MODELS = {part.setting: part.about for part in NAMED_ALONE} | {
    "tokenizers": "folder with some of the four tokenizers, for those that the checkpoint lacks",
    "loras": "folder of LoRAs, which --lora names",
}
"""The keys of `[models]` beside the variants, with the help of their flags."""

ALSO = {("compute", "memory_gb"): ("--memory",), ("compute", "storage"): ("--weight-format",)}
FORMER = {("models", "loras"): ("--loras",)}
"""Other and former names of flags."""

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "f32": "float32", "f16": "float16"}
DTYPES |= {"half": "float16", "float": "float32", "torch.float32": "float32"}
DTYPES |= {f"torch.{name}": name for name in ("float16", "bfloat16")}
"""What people call the types, and their names here."""


class SettingFlag(Flag):
    """A flag whose value is a setting."""

    def __init__(self, table: str, key: str, about: str) -> None:
        assert key in {field.name for field in dataclasses.fields(TABLES[table])}, f"[{table}] has no {key}"
        self.setting = (table, key)
        super().__init__(
            [flag_name(table, key), f"{table}__{key}"],
            also=ALSO.get(self.setting, ()),
            former=FORMER.get(self.setting, ()),
            metavar=key.upper(),
            type=_SettingText(table, key),
            help=about,
        )


class _SettingText(click.ParamType[Any]):
    """The text of a setting, with usual forms of sizes and types turned into those that the setting accepts."""

    name = "text"

    def __init__(self, table: str, key: str) -> None:
        self._table, self._key = table, key

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Give the text."""
        if self._key == "dtype":
            return DTYPES.get(value.lower(), value)
        if self._key == "memory_gb" and (match := re.fullmatch(r"(\d+(?:\.\d+)?) ?gb?", value, re.I | re.A)):
            return match[1]
        if self._key in ("device", "storage"):
            return value.lower()
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete what is known: types, devices, paths."""
        known = {"dtype": ["auto", "float32", "bfloat16", "float16"], "device": ["auto", "cpu", "cuda", "mps"]}
        known["storage"] = ["auto", *WeightFormat]
        if self._table == "models":
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(each) for each in known.get(self._key, ()) if each.startswith(incomplete)]


def model_flags() -> list[click.Parameter]:
    """Declare the flags of the model and of how it computes."""
    model = "an id of the Hub, the variant's folder, a ComfyUI models folder, or a transformer's file (default: nano)"
    return [
        Flag(["--model"], metavar="MODEL", help=model),
        *(SettingFlag("models", part, about) for part, about in MODELS.items()),
        SettingFlag("compute", "device", "torch device (default: auto)"),
        SettingFlag("compute", "dtype", "float32, bfloat16 or float16 (default: auto)"),
        SettingFlag("compute", "storage", "compute, stored, fp8, int8 or nf4 (default: auto)"),
        SettingFlag("compute", "memory_gb", "GB of the device that may be used"),
        SettingFlag("compute", "threads", "CPU threads (default: torch's choice)"),
    ]


def variant_flag() -> Flag:
    """Declare `--variant`."""
    about = "dev, full or fast (default: what --model says, else dev)"
    return Flag(["--variant"], type=OneOf(Variant), help=about)


def configured(given: Given, config: Settings) -> tuple[Variant, Settings]:
    """The variant to load, which --model may say without --variant, and the settings that place the model there."""
    if given.variant is not None or given.model is None:
        return given.variant or Variant.DEV, config
    from hidream.library.source import variant_of

    name = given.model.partition("@")[0]
    try:
        variant = variant_of(Path(name), name, None) or Variant.DEV
    except HiDreamError:  # whoever loads the model says what is wrong with it
        variant = Variant.DEV
    if variant is Variant.DEV:
        return variant, config
    models = dataclasses.replace(config.models, dev=None, **{str(variant): config.models.dev})
    return variant, dataclasses.replace(config, models=models)


def address_flags() -> list[click.Parameter]:
    """Declare where a server listens."""
    return [
        SettingFlag("server", "host", "address to listen on"),
        SettingFlag("server", "port", "port to listen on; 0 takes a free one"),
    ]


def settings_of(given: Given) -> dict[str, dict[str, object]]:
    """The settings among the flags, as {table: {key: text}}."""
    found: dict[str, dict[str, object]] = {}
    if getattr(given, "model", None) is not None:
        found["models"] = {str(getattr(given, "variant", None) or Variant.DEV): given.model}
    for name, value in vars(given).items():
        table, mark, key = name.partition("__")
        if mark and value is not None:
            found.setdefault(table, {})[key] = value
    return found
