"""Three small clients of a map, and options that are done in a moment."""

from __future__ import annotations

from typing import Any

import numpy as np

from foveate.federated.embedding.options import EmbeddingOptions

RANDOM = np.random.default_rng(0)


CLIENTS = [RANDOM.normal(size=(size, 6)) + 3 * number for number, size in enumerate((40, 25, 60))]


SMALL: dict[str, Any] = {"rounds": 4, "hidden": (16,), "surrogate_start": 0.25, "batch_points": 16}


def options(**changes: Any) -> EmbeddingOptions:
    return EmbeddingOptions(**(SMALL | changes))
