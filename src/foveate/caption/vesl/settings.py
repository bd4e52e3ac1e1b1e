"""What a labeling run is asked to do, and the hash that names it in every row."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field

from foveate.caption.vesl.detection import Detector
from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.tagging import Extractor
from foveate.core.recipes import Settings

# Of the steps themselves: raised when the same settings come to give other rows.
STEPS = "vesl-1"


class RegionLabelSettings(Settings):
    """`foveate regions COLLECTION`."""

    phrases: PhraseSettings = PhraseSettings()
    captions: tuple[str, ...] = Field(
        ("dsc_plus", "dsc", "alt"), min_length=1, description="kinds of captions, best first; the first there is counts"
    )
    prefer: tuple[str, ...] = Field((), description="captioners whose captions come first, best first")
    shuffle_phrases: bool = Field(
        False, description="negative control: every image is asked about the phrases of another"
    )


def recipe_of(
    settings: RegionLabelSettings, extractor: Extractor, detector: Detector, detector_settings: Settings
) -> dict[str, Any]:
    """All that decides which rows come out, as JSON values."""
    return {
        "steps": STEPS,
        **settings.model_dump(mode="json"),
        "tagger": {"name": extractor.name, "version": extractor.version},
        "detector": {
            "name": detector.name,
            "version": detector.version,
            "input_px": detector.input_px,
            # Where the weights lie says nothing of them; their version does.
            "settings": {k: v for k, v in detector_settings.model_dump(mode="json").items() if k != "model"},
        },
    }


def recipe_hash(recipe: dict[str, Any]) -> str:
    """16 hexadecimal digits of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
