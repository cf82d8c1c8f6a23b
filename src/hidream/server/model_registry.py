"""The model registry: the models that this installation serves, by name."""

from __future__ import annotations

from hidream.errors import NotFound
from hidream.settings.tables import Models
from hidream.types import MODELS, Variant

VENDOR = "wavespeed-ai"


def served(models: Models) -> dict[str, Variant]:
    """Return the served models: the configured ones, or, if none is configured, all variants of the embedded model."""
    configured = models.configured or Variant
    return {name: variant for name, variant in MODELS.items() if variant in configured}


def find(models: dict[str, Variant], name: object) -> str:
    """Return a model's full name, given its name with or without the vendor. Raises NotFound, which lists the names."""
    for known in models:
        if name in (known, known.removeprefix(f"{VENDOR}/")):
            return known
    raise NotFound(f"there is no model {name!r:.100}; there are: {', '.join(models)}")
