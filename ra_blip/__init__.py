"""RA-BLIP: retrieval-augmented question answering over pictures and texts; public names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ra_blip.config import load_config
    from ra_blip.generation.pipeline import Pipeline
    from ra_blip.models.rablip import RABlip
    from ra_blip.retrieval.index import KnowledgeIndex

__version__ = "0.1.0"
__all__ = ["KnowledgeIndex", "Pipeline", "RABlip", "__version__", "load_config"]

_HOMES = {
    "KnowledgeIndex": "ra_blip.retrieval.index",
    "Pipeline": "ra_blip.generation.pipeline",
    "RABlip": "ra_blip.models.rablip",
    "load_config": "ra_blip.config",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``import ra_blip`` stays light (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
