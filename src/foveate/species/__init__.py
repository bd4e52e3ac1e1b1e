"""Recognize species on camera-trap images at places that a model has never seen (COSMO), and decide what to publish.

```python
from foveate.species import open_species

probabilities = open_species("runs/species/model").probabilities(features)
```
"""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "Classes": "foveate.species.taxonomy",
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

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
