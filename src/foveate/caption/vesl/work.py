"""Settings of region labeling, its recipe, and the captions that it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from foveate.caption.vesl.detection import Detector
from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.tagging import Extractor
from foveate.core import seeds
from foveate.core.errors import UserError, nearest
from foveate.core.recipes import Settings
from foveate.records.captions import PreferredModels, find_wrong_captioners, load_current_captions
from foveate.records.collection import Collection
from foveate.records.tables import GroupedTable

BATCH = 16  # images per pass: enough to keep a CPU busy, few enough for a laptop's memory
# Version of the steps themselves: raised when the same settings give other rows.
STEPS = "vesl-1"
OK, NO_CAPTION, NO_PHRASES, NO_BOXES, DECODE_ERROR, DETECTOR_ERROR = STATUSES = (
    "ok",
    "no_caption",
    "no_phrases",
    "no_boxes",
    "decode_error",
    "detector_error",
)
# Statuses of images that the next run tries again: the disk may be back by then, or the GPU free.
FAILED = (DECODE_ERROR, DETECTOR_ERROR)


class RegionLabelSettings(Settings):
    """`foveate regions COLLECTION`."""

    phrases: PhraseSettings = PhraseSettings()
    captions: tuple[str, ...] = Field(
        ("dsc_plus", "dsc", "alt"),
        min_length=1,
        description="caption kinds in order of preference; each image's first available kind is used",
    )
    prefer: PreferredModels = ()
    shuffle_phrases: bool = Field(False, description="negative control: every image gets the phrases of another")


class RegionRunSettings(Settings):
    """A run of region labeling: its detector and its images.

    Apart from `RegionLabelSettings`, whose hash names the recipe of every row: other images, same recipe. Only
    the control `shuffle_phrases` is another recipe then, because other images have other partners.
    """

    detector: str = Field(
        "nanodet",
        description="detector to use: nanodet (photographs), mllm, owlv2, cloc, or annotations (an oracle: boxes that "
        "exist)",
    )
    model: str | None = Field(
        None, description="the detector's model: a folder, OWNER/NAME on the hub, or a name of open_clip for nanodet"
    )
    options: tuple[str, ...] = Field((), description="further option of the detector")
    split: str | None = Field(None, description="only images of this split")
    limit: int | None = Field(None, ge=1, description="process only this many images, the first ones")
    batch: int = Field(BATCH, ge=1, le=4096, description="batch size of the detector")
    samples: int = Field(24, ge=0, le=500, description="number of images on the page")


def build_recipe(
    settings: RegionLabelSettings, extractor: Extractor, detector: Detector, detector_settings: Settings
) -> dict[str, Any]:
    """Collect all that decides which rows come out, as JSON values."""
    return {
        "steps": STEPS,
        **settings.model_dump(mode="json"),
        "tagger": {"name": extractor.name, "version": extractor.version},
        "detector": {
            "name": detector.name,
            "version": detector.version,
            "input_px": detector.input_px,
            # Leave out the path of the model: a moved folder gives the same rows. `version` has the hash of its
            # weights.
            "settings": {k: v for k, v in detector_settings.model_dump(mode="json").items() if k != "model"},
        },
    }


@dataclass(frozen=True, slots=True)
class ImageCaptions:
    """Captions of an image of the one kind that is used; kind "" if it has none."""

    kind: str = ""
    texts: tuple[str, ...] = ()


class CaptionSource:
    """Current captions of a collection by row.

    Attributes:
        wrong: verdicts by which captions of a kind and model come after all others; none where `settings.captions` was
            set by the user.

    Raises:
        UserError: the collection has no caption of any of the kinds in `settings.captions`.
    """

    def __init__(self, collection: Collection, settings: RegionLabelSettings) -> None:
        self.kinds = settings.captions
        captions = load_current_captions(collection, prefer=settings.prefer)
        available = sorted(captions["kind"].unique().to_pylist())
        if not set(available) & set(self.kinds):
            hint = nearest(self.kinds[0], available)
            raise UserError(
                f"collection '{collection.name}': no caption of the kinds {', '.join(self.kinds)} (it has: "
                f"{', '.join(available) or 'none'}){hint}"
            )
        # Verdicts reorder only the default: an order that the user set is kept.
        is_default = "captions" not in settings.model_fields_set
        self.wrong = find_wrong_captioners(collection, self.kinds) if is_default and "alt" in available else []
        self._wrong = {(verdict.kind, verdict.model) for verdict in self.wrong}
        self._grouped = GroupedTable(captions, pa.chunked_array([pa.array(collection.keys, pa.string())]))

    def get(self, row: int) -> ImageCaptions:
        """Return the captions of the first kind in `settings.captions` that the image has."""
        bounds = self._grouped.bounds(row)
        by_kind: dict[tuple[bool, str], list[str]] = {}
        columns = (self._grouped.texts(name, *bounds) for name in ("kind", "model", "text"))
        for kind, model, text in zip(*columns, strict=True):
            if text.strip():
                by_kind.setdefault(((kind, model) in self._wrong, kind), []).append(text)
        ordered = [(is_wrong, kind) for is_wrong in (False, True) for kind in self.kinds]
        first = next((key for key in ordered if key in by_kind), (False, ""))
        return ImageCaptions(first[1], tuple(by_kind.get(first, ())))


def shuffle_partners(rows: Sequence[int] | NDArray[np.int64], seed: int) -> dict[int, int]:
    """Assign every row another one: each is the partner of one, none its own (for two or more).

    The control `shuffle_phrases` gives an image the phrases of its partner. Other rows have other partners.
    """
    order = seeds.generator("shuffled phrases", seed).permutation(np.asarray(rows))
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
