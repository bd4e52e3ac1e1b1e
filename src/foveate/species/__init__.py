"""Recognize species on camera-trap images at places that a model has never seen (COSMO), and decide what to publish.

```python
from foveate.species import open_species

probabilities = open_species("runs/species/model").probabilities(features)
```
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "LinkClassifier": "foveate.species.classifier",
    "SpeciesGraph": "foveate.species.graph",
    "SpeciesModel": "foveate.species.model",
    "SpeciesRecipe": "foveate.species.recipe",
    "Stages": "foveate.species.decisions",
    "decide": "foveate.species.decisions",
    "open_species": "foveate.species.folder",
    "prepare_stages": "foveate.species.decisions",
    "train_species": "foveate.species.train",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    # torch is loaded with the first name that needs it.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'foveate.species' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
