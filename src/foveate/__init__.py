"""Foveate: vision-language models that know where things are.

Importing this package loads no torch; names that need it are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foveate.core import moved
from foveate.core.version import __version__

moved.install()

_LAZY = {
    "AbsentClassCalibrator": "foveate.calibrate.estimator",
    "AdaptedModel": "foveate.adapt.model",
    "Answer": "foveate.multimodal.answers",
    "Box": "foveate.records.boxes",
    "Calibrator": "foveate.calibrate.estimator",
    "Collection": "foveate.records.collection",
    "ClipReader": "foveate.vision.video.reading",
    "FederatedDeepClustering": "foveate.federated.deep.estimator",
    "FederatedKMeans": "foveate.federated.estimators",
    "FederatedNeighborEmbedding": "foveate.federated.embedding.estimator",
    "Hit": "foveate.search.search",
    "LinkClassifier": "foveate.species.classifier",
    "Location": "foveate.search.api",
    "Mask": "foveate.records.shapes",
    "Mllm": "foveate.multimodal.ask",
    "Model": "foveate.search.api",
    "PixelBox": "foveate.records.boxes",
    "PixelXYWH": "foveate.records.boxes",
    "Point": "foveate.records.shapes",
    "Predictor": "foveate.adapt.predictor",
    "Record": "foveate.records.record",
    "Region": "foveate.records.record",
    "RegionSampler": "foveate.vision.regions.sampler",
    "SearchIndex": "foveate.search.api",
    "SlowFast": "foveate.video.strategies",
    "SpeciesGraph": "foveate.species.graph",
    "Stroke": "foveate.records.shapes",
    "UserError": "foveate.core.errors",
    "adapt": "foveate.adapt",  # the package, which can be called
    "aggregate_frames": "foveate.video.aggregate",
    "choose_frames": "foveate.vision.video.sampling",
    "decide": "foveate.species.decisions",
    "load_adapter": "foveate.adapt.folder",
    "open_adapter": "foveate.adapt.predictor",
    "open_index": "foveate.search.api",
    "open_mllm": "foveate.multimodal.opening",
    "open_model": "foveate.search.api",
    "open_species": "foveate.species.folder",
    "parse_boxes": "foveate.records.box_text",
    "parse_how": "foveate.video.strategies",
    "plan_video": "foveate.video.plan",
    "read_clip": "foveate.vision.video.reading",
    "sample": "foveate.vision.video.sampling",
    "save_adapter": "foveate.adapt.folder",
    "search": "foveate.search",  # the package, which can be called
    "watch": "foveate.video.watch",
}

if TYPE_CHECKING:
    from foveate.adapt.folder import load_adapter, save_adapter
    from foveate.adapt.model import AdaptedModel, adapt
    from foveate.adapt.predictor import Predictor, open_adapter
    from foveate.calibrate.estimator import AbsentClassCalibrator, Calibrator
    from foveate.core.errors import UserError
    from foveate.federated.deep.estimator import FederatedDeepClustering
    from foveate.federated.embedding.estimator import FederatedNeighborEmbedding
    from foveate.federated.estimators import FederatedKMeans
    from foveate.multimodal.answers import Answer
    from foveate.multimodal.ask import Mllm
    from foveate.multimodal.opening import open_mllm
    from foveate.records.box_text import parse_boxes
    from foveate.records.boxes import Box, PixelBox, PixelXYWH
    from foveate.records.collection import Collection
    from foveate.records.record import Record, Region
    from foveate.records.shapes import Mask, Point, Stroke
    from foveate.search.api import Location, Model, SearchIndex, open_index, open_model, search
    from foveate.search.search import Hit
    from foveate.species.classifier import LinkClassifier
    from foveate.species.decisions import decide
    from foveate.species.folder import open_species
    from foveate.species.graph import SpeciesGraph
    from foveate.video.aggregate import aggregate_frames
    from foveate.video.plan import plan_video
    from foveate.video.strategies import SlowFast, parse_how
    from foveate.video.watch import watch
    from foveate.vision.regions.sampler import RegionSampler
    from foveate.vision.video.reading import ClipReader, read_clip
    from foveate.vision.video.sampling import choose_frames, sample

__all__ = [
    "AbsentClassCalibrator",
    "AdaptedModel",
    "Answer",
    "Box",
    "Calibrator",
    "ClipReader",
    "Collection",
    "FederatedDeepClustering",
    "FederatedKMeans",
    "FederatedNeighborEmbedding",
    "Hit",
    "LinkClassifier",
    "Location",
    "Mask",
    "Mllm",
    "Model",
    "PixelBox",
    "PixelXYWH",
    "Point",
    "Predictor",
    "Record",
    "Region",
    "RegionSampler",
    "SearchIndex",
    "SlowFast",
    "SpeciesGraph",
    "Stroke",
    "UserError",
    "__version__",
    "adapt",
    "aggregate_frames",
    "choose_frames",
    "decide",
    "load_adapter",
    "open_adapter",
    "open_index",
    "open_mllm",
    "open_model",
    "open_species",
    "parse_boxes",
    "parse_how",
    "plan_video",
    "read_clip",
    "sample",
    "save_adapter",
    "search",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module = importlib.import_module(_LAZY[name])
        return module if module.__name__ == f"foveate.{name}" else getattr(module, name)
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
