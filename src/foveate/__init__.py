"""Foveate: vision-language models that know where things are.

Importing this package loads no torch; names that need it are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foveate.core import moved
from foveate.core.version import __version__

moved.install()

# Name -> its room, whose own door knows the module. `adapt` and `search` are packages, which can be called.
_ROOMS = {
    "AbsentClassCalibrator": "calibrate",
    "AdaptedModel": "adapt",
    "Answer": "multimodal",
    "Box": "records",
    "Calibrator": "calibrate",
    "Collection": "records",
    "ClipReader": "vision",
    "FederatedDeepClustering": "federated",
    "FederatedKMeans": "federated",
    "FederatedNeighborEmbedding": "federated",
    "Hit": "search",
    "LinkClassifier": "species",
    "Location": "search",
    "Mask": "records",
    "Mllm": "multimodal",
    "Model": "search",
    "PixelBox": "records",
    "PixelXYWH": "records",
    "Point": "records",
    "Predictor": "adapt",
    "Record": "records",
    "Region": "records",
    "RegionSampler": "vision",
    "SearchIndex": "search",
    "SlowFast": "video",
    "SpeciesGraph": "species",
    "Stroke": "records",
    "UserError": "core",
    "adapt": "adapt",
    "aggregate_frames": "video",
    "choose_frames": "vision",
    "decide": "species",
    "load_adapter": "adapt",
    "open_adapter": "adapt",
    "open_index": "search",
    "open_mllm": "multimodal",
    "open_model": "search",
    "open_species": "species",
    "parse_boxes": "records",
    "parse_how": "video",
    "plan_video": "video",
    "read_clip": "vision",
    "sample": "vision",
    "save_adapter": "adapt",
    "search": "search",
    "watch": "video",
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
    from foveate.video.watching import watch
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
    if name not in _ROOMS:
        raise AttributeError(f"module 'foveate' has no attribute {name!r}")
    door = importlib.import_module(f"foveate.{_ROOMS[name]}")
    return door if name == _ROOMS[name] else getattr(door, name)


def __dir__() -> list[str]:
    return sorted(__all__)
