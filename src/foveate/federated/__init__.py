"""Federated wing: data that may not leave its client. Algorithms on typed messages, apart from what carries them."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

# Editors and type checkers cannot follow the table, and see only a list of names that is written out.
if TYPE_CHECKING:
    from foveate.federated.clustering.distances import nearest as nearest_centers
    from foveate.federated.deep.encoder import small_resnet
    from foveate.federated.deep.estimator import FederatedDeepClustering
    from foveate.federated.deep.job import load_model as open_deep_clustering
    from foveate.federated.embedding.estimator import FederatedNeighborEmbedding
    from foveate.federated.estimators import FederatedKMeans
    from foveate.federated.flower.app import write_app as write_flower_app
    from foveate.federated.points import ReadOptions
    from foveate.federated.sources import read_points

__all__ = [
    "FederatedDeepClustering",
    "FederatedKMeans",
    "FederatedNeighborEmbedding",
    "ReadOptions",
    "nearest_centers",
    "open_deep_clustering",
    "read_points",
    "small_resnet",
    "write_flower_app",
]

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
