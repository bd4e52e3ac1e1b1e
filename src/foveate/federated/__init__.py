"""Federated wing: data that may not leave its client. Algorithms on typed messages, apart from what carries them."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "FederatedDeepClustering": "foveate.federated.deep.estimator",
    "FederatedKMeans": "foveate.federated.estimators",
    "FederatedNeighborEmbedding": "foveate.federated.embedding.estimator",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
