"""Phrase grounding: match of predicted and true boxes, and slices by box size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.records.boxes import areas, as_boxes, centers, intersection_over_union, validate_boxes

# COCO's 32 and 96 pixels squared on its usual 640 x 480 image, as shares of the image's area.
SMALL_BELOW = 32 * 32 / (640 * 480)
LARGE_FROM = 96 * 96 / (640 * 480)
SIZE_NAMES = ("small", "medium", "large")
# A predicted box counts as right from this overlap on.
IOU_THRESHOLD = 0.5


def pointing_hits(predicted_R4: ArrayLike, true_R4: ArrayLike) -> NDArray[np.bool_]:
    """Mark predicted boxes whose center lies in the true box, edges included, shape [R]."""
    point_R2, true = centers(predicted_R4), as_boxes(true_R4)
    return np.all((point_R2 >= true[:, :2]) & (point_R2 <= true[:, 2:]), axis=1)


def grounding_scores(
    predicted_R4: ArrayLike, true_R4: ArrayLike, *, ids: Sequence[object] | None = None
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Score R predicted boxes against R true boxes in [0, 1]; nothing is clamped or reordered.

    Predictions may be empty and may reach outside [0, 1], which lowers their IoU. What a user gets at
    inference has gone through `records.boxes.clamp_and_sort`, and that changes the scores: say which of the
    two is reported. Raw corners that are inverted need it, as they are refused.

    Args:
        ids: names of the rows, for the message.

    Returns:
        Per sample, each of shape [R]: `iou`; `acc50`, 1 where IoU >= 0.5; `mse`, mean squared error over
        the four corner numbers (CLOC, eq. 3); `pointing`, 1 where the predicted center lies in the true box.
        And a summary of their means: `mIoU`, `acc50`, `mse`, `pointing`.

    Raises:
        UserError: a box that is not finite or inverted, or a true one that is empty or outside [0, 1] (naming
            its row); no rows at all.

    Example:
        >>> per_box, means = grounding_scores([[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 0.5, 1.0]])
        >>> means
        {'mIoU': 0.5, 'acc50': 1.0, 'mse': 0.0625, 'pointing': 1.0}
    """
    predicted = validate_boxes(predicted_R4, ids, what="prediction for region", predicted=True)
    true = validate_boxes(true_R4, ids)
    if len(predicted) != len(true) or len(true) == 0:
        raise UserError(
            f"grounding needs as many predicted as true boxes, at least one (got {len(predicted)} and {len(true)})"
        )
    iou_R = intersection_over_union(predicted, true)
    scores = {
        "iou": iou_R,
        "acc50": (iou_R >= IOU_THRESHOLD).astype(np.float64),
        "mse": np.square(predicted - true).mean(1),
        "pointing": pointing_hits(predicted, true).astype(np.float64),
    }
    summary = {"mIoU" if name == "iou" else name: float(values.mean()) for name, values in scores.items()}
    return scores, summary


def constant_box_mse(true_R4: ArrayLike, *, reference_R4: ArrayLike | None = None) -> float:
    """Return the mean squared error of always predicting the mean box of `reference_R4` (by default the true boxes).

    A model that learned nothing about boxes ends here, so grounding errors are read against it.
    """
    true = validate_boxes(true_R4)
    reference = true if reference_R4 is None else validate_boxes(reference_R4)
    if len(true) == 0 or len(reference) == 0:
        raise UserError("the constant box needs at least one box")
    return float(np.square(true - reference.mean(0)).mean())


def size_slices(
    boxes_R4: ArrayLike, *, small_below: float = SMALL_BELOW, large_from: float = LARGE_FROM
) -> NDArray[np.str_]:
    """Classify boxes as `small`, `medium` or `large` by their share of the image area, shape [R].

    Args:
        small_below: areas below this share are small.
        large_from: areas from this share on are large.
    """
    if not 0 <= small_below <= large_from:
        raise UserError(f"size limits: not ascending from 0 (got {small_below} and {large_from})")
    # Shares of the image and not pixels, as COCO has them: images are of any size here.
    return np.array(SIZE_NAMES)[np.digitize(areas(boxes_R4), (small_below, large_from))]


def is_unique_phrase(phrases_R: Sequence[Hashable], images_R: Sequence[Hashable]) -> NDArray[np.bool_]:
    """Mark phrases that occur once among their image's regions, shape [R]; the boxes of others are ambiguous."""
    if len(phrases_R) != len(images_R):
        raise UserError(f"images: {len(images_R)} for {len(phrases_R)} phrases; expected one for each")
    # Per image: the same phrase in another image is no ambiguity.
    counts = Counter(zip(images_R, phrases_R, strict=True))
    return np.array([counts[pair] == 1 for pair in zip(images_R, phrases_R, strict=True)], dtype=np.bool_)


def baseline_boxes(count: int, *, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return baselines that ignore the image: the center box (half of each side) and a random box, [count, 4] each."""
    random = seeds.generator("random boxes", seed)
    # Two uniform corners, sorted: uniform over all boxes given as corner pairs.
    corners = np.sort(random.uniform(size=(count, 2, 2)), axis=1)
    return {"center": np.tile([0.25, 0.25, 0.75, 0.75], (count, 1)), "random": corners.reshape(count, 4)}
