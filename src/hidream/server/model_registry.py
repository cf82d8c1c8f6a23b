"""The model registry: the models that this installation serves, by name, and aliases of these names."""

from __future__ import annotations

from collections.abc import Mapping

from hidream.errors import ConfigurationError, NotFound
from hidream.settings.tables import Models
from hidream.types import MODELS, Variant

VENDOR = "wavespeed-ai"


def served(models: Models) -> dict[str, Variant]:
    """Return the served models: the configured ones, or, if none is configured, all variants of the embedded model."""
    configured = models.configured or Variant
    return {name: variant for name, variant in MODELS.items() if variant in configured}


def find(models: Mapping[str, Variant], name: object, aliases: Mapping[str, str] | None = None) -> str:
    """Return a model's full name, given its name with or without the vendor, or one of its aliases.

    Raises NotFound, which lists the names.
    """
    aliases = aliases or {}
    for known in models:
        if name in (known, known.removeprefix(f"{VENDOR}/")):
            return known
    if isinstance(name, str) and name in aliases:
        return aliases[name]
    raise NotFound(f"there is no model {name!r:.100}; there are: {', '.join([*models, *aliases])}", field="model")


def aliases(setting: str, models: Mapping[str, Variant]) -> dict[str, str]:
    """Read the setting `model_aliases`: the full name of the model that each alias stands for.

    Raises ConfigurationError for a model that is not served, and for an alias that is a model's name or is repeated.
    """
    found: dict[str, str] = {}
    where = "[server] model_aliases"
    for entry in setting.split(",") if setting else ():
        alias, name = (each.strip() for each in entry.split("="))
        if alias in found or alias in MODELS or f"{VENDOR}/{alias}" in MODELS:
            why = "is there twice" if alias in found else "is the name of a model"
            raise ConfigurationError(f"{where}: {alias} {why}; accepted: other names, each once")
        try:
            found[alias] = find(models, name)
        except NotFound as error:
            raise ConfigurationError(
                f"{where}: {alias} stands for {name}, which is not served; accepted: {', '.join(models)}"
            ) from error
    return found
