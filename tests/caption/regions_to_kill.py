"""Labeling in a process of its own, with a quick detector and small parts, to be killed at any moment."""

from __future__ import annotations

from pathlib import Path

from foveate.caption.settings import RegionLabelSettings
from foveate.caption.vesl import run
from foveate.caption.vesl.detection import AnnotationSettings

run._IMAGES_PER_PART = 3


def label(collection: str) -> None:
    """Labels with the oracle, alt-texts only."""
    run.label_regions(
        Path(collection),
        RegionLabelSettings(captions=("alt",)),
        detector="annotations",
        detector_settings=AnnotationSettings(),
        batch=2,
    )
