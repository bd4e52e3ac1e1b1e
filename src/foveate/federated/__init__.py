"""Federated wing: data that may not leave its client. Algorithms on typed messages, apart from what carries them."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "FederatedDeepClustering": "foveate.federated.deep.estimator",
    "FederatedKMeans": "foveate.federated.estimators",
    "FederatedNeighborEmbedding": "foveate.federated.embedding.estimator",
    "ReadOptions": "foveate.federated.points",
    "nearest_centers": "foveate.federated.clustering.distances:nearest",
    "open_deep_clustering": "foveate.federated.deep.job:load_model",
    "read_points": "foveate.federated.sources",
    "small_resnet": "foveate.federated.deep.encoder",
    "write_flower_app": "foveate.federated.flower.app:write_app",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
