"""The tour's first look at camera traps: the shipped detector on generated images, with and without an animal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.runs import RunFolder
from foveate.records.boxes import pairwise_iou
from foveate.records.collection import Collection
from foveate.records.images import save_thumbnail
from foveate.report.parts import RIGHT_FROM
from foveate.species.boxes import SOURCE, add_boxes
from foveate.species.settings import BoxSettings
from foveate_labs.studies.results import TourTraps, TrapBoxes
from foveate_labs.worlds.traps import build_traps

FOLDER = "traps"
NUM_IMAGES, NUM_EXAMPLES = 48, 4


def tour_traps(run: RunFolder, *, seed: int, device: str | None = None, count: int = NUM_IMAGES) -> dict[str, Any]:
    """Draw images of a survey and propose boxes; return the result for the tour's page."""
    build_traps(run.path / FOLDER, train=0, test=count, seed=seed)
    # The true boxes are in the collection already: the detector is to look at these images, too.
    add_boxes(run.path / FOLDER, BoxSettings(every_image=True), device=device, workers=1)
    collection = Collection.open(run.path / FOLDER)
    regions = [collection.read_regions(row) for row in range(len(collection))]
    truths = [_stack([region.box.to_array() for region in image if region.source != SOURCE]) for image in regions]
    boxes = [_stack([region.box.to_array() for region in image if region.source == SOURCE]) for image in regions]
    animals = [row for row, truth_A4 in enumerate(truths) if len(truth_A4)]
    empty = [row for row, truth_A4 in enumerate(truths) if not len(truth_A4)]
    examples = []
    for row in animals[:NUM_EXAMPLES]:  # the first ones, whatever was found
        path = run.path / "images" / f"traps-{row:03d}.webp"
        save_thumbnail(collection.image_bytes(row), path, longest_side=360)
        corners = {"truth": truths[row].round(5).tolist(), "boxes": boxes[row].round(5).tolist()}
        examples.append(TrapBoxes(image=path.relative_to(run.path).as_posix(), **corners))
    return TourTraps(
        animals=len(animals),
        boxed=sum(_is_boxed(truths[row], boxes[row]) for row in animals),
        shifted=sum(
            _is_boxed(truths[row], boxes[other]) for row, other in zip(animals, np.roll(animals, 1), strict=True)
        ),
        empty=len(empty),
        unboxed=sum(not len(boxes[row]) for row in empty),
        examples=examples,
    ).to_json()


def _stack(boxes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _is_boxed(truth_A4: NDArray[np.float64], boxes_K4: NDArray[np.float64]) -> bool:
    """Whether each animal of an image has a box."""
    return len(boxes_K4) > 0 and bool((pairwise_iou(truth_A4, boxes_K4).max(axis=1) >= RIGHT_FROM).all())
