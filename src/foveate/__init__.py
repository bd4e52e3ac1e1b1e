"""Foveate: vision-language models that know where things are.

Importing this package loads no torch; names that need it are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "Collection": "foveate.records.collection",
    "Record": "foveate.records.record",
    "Region": "foveate.records.record",
    "Box": "foveate.records.boxes",
    "UserError": "foveate.settings.errors",
    "open_model": "foveate.pretrain.model",
}

if TYPE_CHECKING:
    from foveate.pretrain.model import open_model
    from foveate.records.boxes import Box
    from foveate.records.collection import Collection
    from foveate.records.record import Record, Region
    from foveate.settings.errors import UserError

__all__ = ["Box", "Collection", "Record", "Region", "UserError", "__version__", "open_model"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
