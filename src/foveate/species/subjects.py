"""Find the subjects of images: each animal that a detector boxed and the model saw, the people, the vehicles.

An image that no detector with categories looked at is one subject, and so is one without a box at the threshold. Two
boxes of different kinds on one object, such as a weak animal on a person, are the surer one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.records.boxes import pairwise_iou
from foveate.species.rows import DETECTED, BestDetections, Floats, Integers

_ANIMAL = DETECTED.index("animal")
# Overlap from which boxes of two kinds show one object, as in MegaDetector's own suppression within a kind.
_SAME_OBJECT = 0.45


@dataclass(frozen=True)
class Boxes:
    """Boxes of all images, in any order.

    Args:
        images_B: position of the image of each box.
        kinds_B: index into `DETECTED`, -1 for another kind.
        crops_B: as in `Predictions.boxes`.
        corners_B4: x1, y1, x2, y2 in [0, 1].
    """

    images_B: Integers
    kinds_B: Integers
    scores_B: Floats
    crops_B: Integers
    corners_B4: Floats


@dataclass(frozen=True)
class Subjects:
    """What is decided about, in the order of the images; the surest of an image first.

    Attributes:
        images_S: position of the image.
        crops_S: which probabilities are its own, see `Predictions.store_subjects`.
        detections: its kind and the score of its surest box.
        boxes: rows of the boxes of each subject, the surest first.
        is_counted_S: whether its boxes are a count: a detector with categories found them.
    """

    images_S: Integers
    crops_S: Integers
    detections: BestDetections
    boxes: list[list[int]]
    is_counted_S: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images_S)


def find_subjects(boxes: Boxes, detections: BestDetections, threshold: float | None) -> Subjects:
    """Return the subjects of N images.

    Args:
        detections: best detection of each image; what an image is that has one subject.
        threshold: of boxes that count; None where the detector decides nothing: each image is one subject.
    """
    count = len(detections.kinds_N)
    is_judged_N = np.zeros(count, bool) if detections.is_judged_N is None else detections.is_judged_N
    counts_B = np.zeros(len(boxes.images_B), dtype=bool)
    if threshold is not None:
        counts_B = is_judged_N[boxes.images_B] & (boxes.kinds_B >= 0) & (boxes.scores_B >= threshold)
        counts_B[_find_covered(boxes, np.flatnonzero(counts_B))] = False
    # An animal with a view of its own is one subject; the others of an image share one, as do people and vehicles.
    crops_B = np.where(boxes.kinds_B == _ANIMAL, np.maximum(boxes.crops_B, 0), 0)
    counted = np.flatnonzero(counts_B)
    order = counted[np.lexsort((-boxes.scores_B[counted], boxes.images_B[counted]))]
    members: dict[tuple[int, int, int], list[int]] = {}
    columns = (boxes.images_B[order], boxes.kinds_B[order], crops_B[order])
    for row, *name in zip(order.tolist(), *(column.tolist() for column in columns), strict=True):
        members.setdefault((name[0], name[1], name[2]), []).append(row)
    # Images without a counted box: what the image shows, with the box that it was cropped to.
    seen_N = np.zeros(count, dtype=bool)
    seen_N[boxes.images_B[counted]] = True
    alone = np.flatnonzero(~seen_N)
    cropped = np.flatnonzero(boxes.crops_B == 0)
    crop_of = dict(zip(boxes.images_B[cropped].tolist(), cropped.tolist(), strict=True))
    names = [*members, *((image, int(detections.kinds_N[image]), 0) for image in alone.tolist())]
    rows = [*members.values(), *([crop_of[image]] if image in crop_of else [] for image in alone.tolist())]
    images_S, kinds_S, crops_S = np.array(names, dtype=np.int64).reshape(-1, 3).T
    best = [of_subject[0] for of_subject in members.values()]
    scores_S = np.concatenate([boxes.scores_B[best], detections.scores_N[alone]])
    is_counted_S = np.arange(len(names)) < len(members)
    order_S = np.argsort(images_S, kind="stable")
    judged_S = None if detections.is_judged_N is None else is_judged_N[images_S][order_S]
    return Subjects(
        images_S[order_S],
        crops_S[order_S],
        BestDetections(kinds_S[order_S], scores_S[order_S], judged_S),
        [rows[index] for index in order_S.tolist()],
        is_counted_S[order_S],
    )


def _find_covered(boxes: Boxes, rows: Integers) -> list[int]:
    """Return which boxes lie on a surer one of another kind."""
    rows = rows[np.lexsort((-boxes.scores_B[rows], boxes.images_B[rows]))]
    images, starts = np.unique(boxes.images_B[rows], return_index=True)
    kinds = boxes.kinds_B[rows]
    # Only images with boxes of several kinds are looked at, which are few.
    several = np.minimum.reduceat(kinds, starts) != np.maximum.reduceat(kinds, starts) if len(images) else []
    ends, covered = np.append(starts[1:], len(rows)), list[int]()
    for index in np.flatnonzero(several).tolist():
        members = rows[starts[index] : ends[index]]
        corners = boxes.corners_B4[members]
        overlaps = pairwise_iou(corners, corners) >= _SAME_OBJECT
        overlaps &= boxes.kinds_B[members][:, None] != boxes.kinds_B[members]
        standing = list[int]()
        for n, row in enumerate(members.tolist()):
            if overlaps[n, standing].any():
                covered.append(row)
            else:
                standing.append(n)
    return covered
