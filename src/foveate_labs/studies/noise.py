"""Noise on region labels: training regions of a collection with other boxes or other phrases.

Images stay as they are, so that all variants share one cache of frozen features. Test regions are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.seeds import generator
from foveate.records.collection import Collection

EDGES = ("x1", "y1", "x2", "y2")
MIN_SIDE = 0.02
TEXT_COLUMNS = ("phrase", "label", "slice")


@dataclass(frozen=True)
class Noise:
    """Noise on the regions of training images.

    jitter: sides are scaled by a factor between 1 - jitter and 1 + jitter, and the middle moves by up to jitter / 2 of
        a side; 0.5 is the +-50 % of the method's own test.
    wrong_phrases: share of regions that get the phrase of another region.
    shuffled_phrases, shuffled_boxes: every region gets the phrase, or the box, of a region drawn from all images.
    """

    jitter: float = 0.0
    wrong_phrases: float = 0.0
    shuffled_phrases: bool = False
    shuffled_boxes: bool = False


def jittered(boxes_R4: NDArray[np.float64], rng: np.random.Generator, *, jitter: float) -> NDArray[np.float64]:
    """Return boxes in [0, 1] with jittered sides and centers (see `Noise`), clipped to the image.

    >>> jittered(np.array([[0.2, 0.2, 0.4, 0.6]]), np.random.default_rng(0), jitter=0.0).tolist()
    [[0.2, 0.2, 0.4, 0.6]]
    """
    # Returned unchanged: the floor and the clips below would change small boxes and those at the edges.
    if not jitter:
        return boxes_R4.copy()
    low_R2, high_R2 = boxes_R4[:, :2], boxes_R4[:, 2:]
    side_R2 = high_R2 - low_R2
    middle_R2 = (low_R2 + high_R2) / 2 + side_R2 * rng.uniform(-jitter / 2, jitter / 2, side_R2.shape)
    half_R2 = np.maximum(side_R2 * rng.uniform(1 - jitter, 1 + jitter, side_R2.shape), MIN_SIDE) / 2
    # The middle stays inside, so that no box leaves the image as a whole.
    middle_R2 = np.clip(middle_R2, MIN_SIDE, 1 - MIN_SIDE)
    return np.concatenate([np.maximum(middle_R2 - half_R2, 0.0), np.minimum(middle_R2 + half_R2, 1.0)], axis=1)


def spoiled(regions: pa.Table, training_R: NDArray[np.bool_], noise: Noise, *, seed: int) -> pa.Table:
    """Return the table of regions with noise on the rows where `training_R` is True."""
    rng = generator("study noise", seed)
    places = np.flatnonzero(training_R)
    boxes_R4 = np.stack([regions[edge].to_numpy().astype(np.float64) for edge in EDGES], axis=1)
    texts = {name: np.array(regions[name].to_pylist(), dtype=object) for name in TEXT_COLUMNS}
    if noise.shuffled_boxes:
        boxes_R4[places] = boxes_R4[rng.permutation(places)]
    boxes_R4[places] = jittered(boxes_R4[places], rng, jitter=noise.jitter)
    # Phrase, label and slice move together: a region of another concept also counts for that concept.
    changed = places if noise.shuffled_phrases else places[rng.random(len(places)) < noise.wrong_phrases]
    # A permutation keeps how often each phrase occurs; a wrong phrase is drawn with its frequency.
    others = rng.permutation(changed) if noise.shuffled_phrases else rng.choice(places, len(changed))
    for name in TEXT_COLUMNS:
        texts[name][changed] = texts[name][others]
    columns = {edge: boxes_R4[:, number] for number, edge in enumerate(EDGES)} | texts
    for name, values in columns.items():
        column = regions.schema.get_field_index(name)
        field = regions.schema.field(column)
        regions = regions.set_column(column, field, pa.array(values, field.type))
    return regions


class SpoiledCollection(Collection):
    """A collection whose table of regions is replaced in memory."""

    spoiled_regions: pa.Table | None = None

    def table(self, kind: str) -> pa.Table:
        if kind == "regions" and self.spoiled_regions is not None:
            return self.spoiled_regions
        return super().table(kind)


def open_spoiled(path: Path, noise: Noise, *, seed: int) -> Collection:
    """Open a collection with noise on the regions of its training images."""
    opened = SpoiledCollection.open(path)
    assert isinstance(opened, SpoiledCollection)
    regions = opened.table("regions")
    training = set(np.array(opened.keys, dtype=object)[opened.rows("train")])
    mask_R = np.array([key in training for key in regions["key"].to_pylist()], dtype=bool)
    opened.spoiled_regions = spoiled(regions, mask_R, noise, seed=seed)
    return opened
