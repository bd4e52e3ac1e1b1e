"""Crop camera-trap images for the encoder: the animal's box plus a margin, or the full frame.

Info strips are cut off. Training and prediction both build their views here, so that a model sees new cards exactly
as it saw the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pydantic import Field

from foveate.core.recipes import Settings
from foveate.records.boxes import Box, areas, as_boxes
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import BadImage, decode
from foveate.records.region_sources import DETECTED, detector_source
from foveate.species.hints import group_repeated_boxes
from foveate.survey.detections import get_kind
from foveate.survey.survey import Survey

NANODET = detector_source("nanodet")
"""Source of the boxes of the shipped detector, which are neither counted nor told apart by species."""
_SECONDS_OF_A_DAY = 86400

# Frames of a camera that are compared for its strips: by day and by night, so that a dark sky is no strip.
_FRAMES_OF_A_CAMERA = 12
_MIN_FRAMES = 3
_LONGEST_SIDE = 512  # pixels of compared frames: letters of a strip stay apart from its color
_MAX_STRIP = 0.15  # share of the height, on each side: more is scenery
# Rows full of text between rows of the strip's color.
_MAX_GAP = 0.04
# Levels (of 255) by which the color of a strip may vary. The noise of a JPEG is larger only beside letters, that of a
# dark scene is larger everywhere, which separates the two.
_LEVELS = 4
_MIN_EDGE_SHARE, _MIN_ROW_SHARE = 0.6, 0.25  # of a row that has the strip's color: at the image's edge, within a strip
_TEXT_CONTRAST, _MIN_TEXT = 64, 0.01  # a black sky has no letters
_MAX_LOGO = 3.0  # height of a camera maker's logo in heights of its strip; 2 to 2.3 in real frames


class CropSettings(Settings):
    """The part of an image that is recognized."""

    view: Literal["crop", "whole"] = Field(
        "crop", description="crop: the best box of an image with a margin, the whole image where it has none; or whole"
    )
    margin: float = Field(0.1, ge=0, le=2, description="added to each side of a box, in its longer side")
    min_box_score: float = Field(0.2, ge=0, le=1, description="minimum score of a detector's box that is cropped")
    strips: Literal["keep", "crop"] = Field(
        "keep",
        description="info strips with date and camera name: keep (official), or crop what all frames of a camera share",
    )
    strip_px: tuple[int, ...] = Field(
        (), max_length=2, description="height of the strips at top and bottom in pixels, instead of finding them"
    )


@dataclass(frozen=True, slots=True)
class Strips:
    """Info strips of a camera, as shares of the image's height."""

    top: float = 0.0
    bottom: float = 0.0

    @property
    def content(self) -> Box:
        """The part of the image between the strips."""
        return Box(0.0, self.top, 1.0, 1.0 - self.bottom)


def choose_box(boxes_R4: ArrayLike, scores_R: ArrayLike, *, min_score: float) -> NDArray[np.float64] | None:
    """Choose the box of highest score, of equal ones the largest; None where no score reaches `min_score`.

    One box an image: its label belongs to the image, and animals of one frame are nearly always of one kind.
    """
    boxes, scores = as_boxes(boxes_R4), np.asarray(scores_R, dtype=np.float64)
    eligible = np.flatnonzero(scores >= min_score)
    if not len(eligible):
        return None
    # `np.lexsort` sorts by its last key first: by score, then by area.
    order = np.lexsort((-areas(boxes[eligible]), -scores[eligible]))
    return boxes[eligible[order[0]]]


def crop_view(box_4: ArrayLike | None, *, width: int, height: int, margin: float, strips: Strips | None = None) -> View:
    """Return the view of a box with its margin, or of the whole image, without strips.

    Args:
        box_4: x1, y1, x2, y2 in [0, 1] of the image; None for the whole image.
        width, height: in pixels: a margin is equally wide on all sides.
        margin: of the box's longer side.
    """
    x1, y1, x2, y2 = (0.0, 0.0, 1.0, 1.0) if box_4 is None else np.asarray(box_4, dtype=np.float64).tolist()
    if box_4 is not None:
        pad = margin * max((x2 - x1) * width, (y2 - y1) * height)
        x1, y1, x2, y2 = x1 - pad / width, y1 - pad / height, x2 + pad / width, y2 + pad / height
    content = (strips or Strips()).content
    cropped = (max(x1, 0.0), max(y1, content.y1), min(x2, 1.0), min(y2, content.y2))
    if cropped == (0.0, 0.0, 1.0, 1.0):
        return View()
    # Use the whole content if the box has no area, or lies within a strip: then the detector took its text for an
    # object.
    usable = cropped[0] < cropped[2] and cropped[1] < cropped[3]
    return View(crop=Box(*cropped) if usable else content)


def find_strips(frames_FHW: NDArray[np.uint8], *, min_frames: int = _MIN_FRAMES) -> Strips:
    """Find rows at top and bottom that have one color in all frames but for text, and text in each.

    Args:
        frames_FHW: gray frames of one camera, of a common size.
        min_frames: fewer frames show no strip; a single one may have a black sky with a light in it.
    """
    if len(frames_FHW) < min_frames:
        return Strips()
    return Strips(_strip_height(frames_FHW), _strip_height(frames_FHW[:, ::-1]))


def is_in_strip(boxes_K4: ArrayLike, strips: Strips) -> NDArray[np.bool_]:
    """Return which boxes [K] show something of a strip: its text, or a logo that rises above it.

    Args:
        boxes_K4: x1, y1, x2, y2 in [0, 1]. strips: of their image.
    """
    _, y1_K, _, y2_K = as_boxes(boxes_K4).T
    is_low_K = y2_K - y1_K <= _MAX_LOGO * np.array([[strips.top], [strips.bottom]])
    # Past the middle of the strip: an animal in front of the camera may touch its edge.
    reaches_K = np.stack([y1_K < strips.top / 2, y2_K > 1 - strips.bottom / 2])
    return np.asarray((is_low_K & reaches_K).any(axis=0))


def _strip_height(frames_FHW: NDArray[np.uint8]) -> float:
    """Share of the rows, from the first on, that belong to a strip; 0 if the scene may be as plain."""
    height = frames_FHW.shape[1]
    max_rows, max_gap = int(_MAX_STRIP * height), max(2, round(_MAX_GAP * height))
    # Some rows more than a strip may have: what is plain beyond is a dark or white sky.
    outer_FHW = frames_FHW[:, : max_rows + max_gap].astype(np.float32)
    distance_FHW = np.abs(outer_FHW - np.median(outer_FHW[:, 0]))
    # The least of all frames: where a night is as dark as the strip, a day is not.
    if (distance_FHW[:, 0] <= 2 * _LEVELS).mean(axis=1).min() < _MIN_EDGE_SHARE:
        return 0.0
    share_H = (distance_FHW <= _LEVELS).mean(axis=2).min(axis=0)
    rows = 0
    for row in np.flatnonzero(share_H >= _MIN_ROW_SHARE).tolist():
        if row - rows > max_gap:
            break
        rows = row + 1
    # A strip ends at once, between its lower margin and the scene; a dark sky fades behind branches.
    if not 0 < rows <= max_rows or share_H[rows - 1] < _MIN_EDGE_SHARE:
        return 0.0
    text_F = (distance_FHW[:, :rows] >= _TEXT_CONTRAST).mean(axis=(1, 2))
    return rows / height if text_F.min() >= _MIN_TEXT else 0.0


def camera_strips(images: Iterable[bytes]) -> Strips:
    """Find the strips of a camera from the bytes of some of its images; unreadable ones are skipped."""
    frames: list[NDArray[np.uint8]] = []
    for data in images:
        try:
            image = decode(data, longest_side=_LONGEST_SIDE).convert("L")
        except BadImage:
            continue
        if frames and image.size != frames[0].shape[::-1]:
            image = image.resize(frames[0].shape[::-1], Image.Resampling.BOX)
        frames.append(np.asarray(image))
    return find_strips(np.stack(frames)) if frames else Strips()


class Views:
    """Views of the images of a collection.

    Args:
        boxes: row -> x1, y1, x2, y2 in [0, 1], instead of the collection's regions; exact ones, or a detector's.

    Attributes:
        cropped: number of rows that show a box.
        strips: group (camera) -> its strips, where they are cut off.
    """

    def __init__(
        self,
        collection: Collection,
        rows: Sequence[int] | NDArray[np.int64],
        settings: CropSettings,
        *,
        boxes: Mapping[int, NDArray[np.float64]] | None = None,
    ) -> None:
        self._widths, self._heights = collection.index["width"], collection.index["height"]
        self._groups, self._settings = collection.groups, settings
        row_list = [int(row) for row in rows]
        self._boxes: Mapping[int, NDArray[np.float64]] = {}
        if settings.view == "crop":
            self._boxes = collection_boxes(collection, row_list, settings) if boxes is None else boxes
        self.cropped = sum(row in self._boxes for row in row_list)
        self._collection, self._rows = collection, row_list
        self.strips: dict[str, Strips] = {}
        if settings.strips == "crop" and not settings.strip_px:
            for group, members in _group_rows(self._groups, row_list).items():
                # Spread over the card: its first frames may all be of one night.
                sample = np.unique(np.linspace(0, len(members) - 1, _FRAMES_OF_A_CAMERA).round().astype(int))
                self.strips[group] = camera_strips(_readable(collection, [members[index] for index in sample]))

    def __getitem__(self, row: int) -> View:
        return self._crop(row, self._boxes.get(row))

    def further(self, row: int) -> list[View]:
        """Return the views of the further animals of a row, in the order of `further_boxes`."""
        return [self._crop(row, box) for box in self.further_boxes(row)]

    def further_boxes(self, row: int) -> NDArray[np.float64]:
        """Return the boxes [B, 4] of a row's further animals, the surest first."""
        return self._further.get(row, np.zeros((0, 4)))

    @cached_property
    def _further(self) -> dict[int, NDArray[np.float64]]:
        # Found when first asked for, because a training looks at one box an image.
        if self._settings.view != "crop":
            return {}
        return further_boxes(self._collection, self._rows, self._settings, self._boxes)

    def _crop(self, row: int, box: NDArray[np.float64] | None) -> View:
        width, height = int(self._widths[row]), int(self._heights[row])
        strips = self._strips_of(row, height)
        return crop_view(box, width=width, height=height, margin=self._settings.margin, strips=strips)

    def view_of(self, row: int, view: int) -> View:
        """Return the view of a row, as `foveate.vision.feature_cache.FeatureCache` asks for it."""
        return self[row]

    def box(self, row: int) -> NDArray[np.float64] | None:
        """Return the box that a row's view shows; None for the whole image."""
        return self._boxes.get(row)

    def _strips_of(self, row: int, height: int) -> Strips | None:
        if self._settings.strip_px:
            top, bottom = (*self._settings.strip_px, 0)[:2]
            # Below one half on each side, so that something is left between the strips even of a small image.
            return Strips(min(top / height, 0.45), min(bottom / height, 0.45))
        return self.strips.get(self._groups[row])


def collection_boxes(
    collection: Collection, rows: Iterable[int], settings: CropSettings
) -> dict[int, NDArray[np.float64]]:
    """Choose the box of each row among the regions of the collection; rows without one are left out.

    Boxes of people and vehicles are never chosen: the classifier is one of animals. Of an image with boxes of NanoDet
    and others, such as MegaDetector's, the others are; of NanoDet's none that returns at one spot of its camera.
    """
    regions = collection.grouped("regions")
    scores, corners = regions.array("score"), collection.region_boxes
    labels, sources = regions.table["label"].to_pylist(), regions.table["source"].to_pylist()
    others = {label for label in set(labels) if get_kind(label) in ("human", "vehicle")}
    is_nanodet = np.array([source == NANODET for source in sources], dtype=bool)
    unusable = np.array([label in others for label in labels], dtype=bool) | _find_repeated(collection, is_nanodet)
    # NaN is below every minimum, so that these boxes are never eligible.
    scores = np.where(unusable, np.nan, scores)
    boxes = {}
    for row in rows:
        start, end = regions.bounds(row)
        of_image = np.arange(start, end)
        if not is_nanodet[start:end].all():
            of_image = of_image[~is_nanodet[start:end]]
        if len(of_image):
            box = choose_box(corners[of_image], scores[of_image], min_score=settings.min_box_score)
            if box is not None:
                boxes[row] = box
    return boxes


def _find_repeated(collection: Collection, is_nanodet_B: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of NanoDet's boxes [B] return at one spot of a camera: stones, roots, signs and logos."""
    is_repeated_B = np.zeros(len(is_nanodet_B), dtype=bool)
    selected = np.flatnonzero(is_nanodet_B)
    if not len(selected) or not collection.has_survey:
        return is_repeated_B
    survey, regions = Survey.open(collection), collection.grouped("regions")
    owners = regions.row_numbers[selected]
    spots = group_repeated_boxes(
        collection.region_boxes[selected],
        scores_B=regions.array("score")[selected],
        keys_B=regions.table["key"].take(pa.array(selected)).to_pylist(),
        cameras_B=survey.camera_N[owners].tolist(),
        days_B=survey.clock_N[owners] // _SECONDS_OF_A_DAY,
    )
    for members in spots:
        is_repeated_B[selected[members]] = True
    return is_repeated_B


def further_boxes(
    collection: Collection, rows: Iterable[int], settings: CropSettings, chosen: Mapping[int, NDArray[np.float64]]
) -> dict[int, NDArray[np.float64]]:
    """Return the boxes [B, 4] of further animals of each row, the surest first; rows without one are left out.

    Boxes of a detector without categories are no further animals: of one animal it may have several, and of a stone.

    Args:
        chosen: box of each row by `collection_boxes`, which is not among them.
    """
    regions = collection.grouped("regions")
    scores, corners = regions.array("score"), collection.region_boxes
    columns = zip(regions.table["label"].to_pylist(), regions.table["source"].to_pylist(), strict=True)
    is_animal = [
        source.startswith(DETECTED) and source != NANODET and get_kind(label) == "animal" for label, source in columns
    ]
    eligible = np.array(is_animal, dtype=bool) & (scores >= settings.min_box_score)
    boxes = {}
    for row in rows:
        start, end = regions.bounds(row)
        if row not in chosen or eligible[start:end].sum() < 2:
            continue
        indices = start + np.flatnonzero(eligible[start:end])
        indices = indices[np.argsort(-scores[indices], kind="stable")]
        # One row may equal the chosen box twice; only the first is the image's view.
        is_chosen = (corners[indices] == chosen[row]).all(axis=1)
        rest = np.delete(indices, np.flatnonzero(is_chosen)[:1])
        if len(rest):
            boxes[row] = corners[rest].astype(np.float64)
    return boxes


def _group_rows(groups: NDArray[np.object_], rows: Iterable[int]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for row in rows:
        members.setdefault(groups[row], []).append(row)
    return members


def _readable(collection: Collection, rows: Iterable[int]) -> Iterable[bytes]:
    for row in rows:
        try:
            yield collection.image_bytes(row)
        except BadImage:
            continue
