"""Which models this installation serves, under which names."""

from __future__ import annotations

from hidream.errors import NotFound
from hidream.settings.tables import Models
from hidream.types import MODELS, Variant

VENDOR = "wavespeed-ai"


def served(models: Models) -> dict[str, Variant]:
    """Name the models that are served: those that are configured, or without any the embedded one's variants."""
    configured = {Variant.DEV: models.dev, Variant.FULL: models.full, Variant.FAST: models.fast}
    if any(configured.values()):
        return {name: variant for name, variant in MODELS.items() if configured[variant]}
    return dict(MODELS)


def find(models: dict[str, Variant], name: object) -> str:
    """Find a model by its name, with the vendor's or without. Raises NotFound, which lists what there is."""
    for known in models:
        if name in (known, known.removeprefix(f"{VENDOR}/")):
            return known
    raise NotFound(f"there is no model {name!r:.100}; there are: {', '.join(models)}")
