"""Boxes and geometry with numbers of every kind: a legal box in [0, 1] or a refusal, there and back."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
from fuzz_run import Target, Trial
from fuzz_values import mutated, odd_number, odd_value

from foveate.core.errors import UserError
from foveate.records import boxes as b
from foveate.records.geometry import (
    Letterbox,
    View,
    original_to_padded_square,
    padded_square_to_original,
)
from foveate.records.importers.sample import Problem
from foveate.records.importers.sidecar import read_region
from foveate.records.rows import check_row, region_row


def _number(random: Random, scale: float = 1.0) -> float:
    """Mostly a number near the image, at times any float."""
    choice = random.random()
    if choice < 0.6:
        return random.uniform(-0.1, 1.1) * scale
    if choice < 0.75:
        return random.choice((0.0, 1.0, -1e-7, 1 + 1e-7, 1 - 1e-16, 5e-324, 0.5, -0.0)) * scale
    value = odd_number(random)
    return value if isinstance(value, float) or abs(value) < 2**70 else math.inf if value > 0 else -math.inf


def _side(random: Random) -> int:
    return random.choice((1, 2, 3, 17, 224, 640, 65_535, 2**31 - 1, random.randrange(1, 5000)))


def _legal(box: b.Box) -> None:
    assert 0 <= box.x1 < box.x2 <= 1, box
    assert 0 <= box.y1 < box.y2 <= 1, box
    assert 0 < box.width <= 1


def typed(trial: Trial) -> str:
    """Pixels, COCO's and YOLO's form to the canonical box and back."""
    random = trial.random
    width, height = (
        (_side(random), _side(random)) if random.random() < 0.95 else (odd_number(random), odd_number(random))
    )
    form, clipped = random.randrange(4), random.random() < 0.5
    scale = (1.0, width, width, 1.0)[form] if isinstance(width, int) and abs(width) < 2**70 else 1.0
    values = [_number(random, scale) for _ in range(4)]
    trial.note((form, clipped, values, width, height))
    if form == 0:
        box = b.Box(*values)
    elif form == 1:
        box = b.Box.from_pixels(b.PixelBox(*values), width, height, clipped=clipped)
    elif form == 2:
        box = b.Box.from_xywh(b.PixelXYWH(*values), width, height, clipped=clipped)
    else:
        box = b.Box.from_center(b.CenterBox(*values), clipped=clipped)
    _legal(box)
    if form in (0, 3):
        width, height = _side(random), _side(random)
    there = box.to_pixels(width, height)
    for back in (b.Box.from_pixels(there, width, height), b.Box.from_array(box.to_array())):
        assert np.allclose(back.to_array(), box.to_array(), atol=1e-9)
    stored = region_row("k", _region(box))
    try:
        check_row("regions", stored)
    except UserError:
        # Thinner than float32 can tell: refused when it is stored, never changed.
        assert np.float32(box.x1) == np.float32(box.x2) or np.float32(box.y1) == np.float32(box.y2)
        return "too thin to store"
    return "legal"


def _region(box: b.Box) -> Any:
    from foveate.records.record import Region

    return Region(box, "thing")


def arrays(trial: Trial) -> str:
    """Arrays of boxes of any shape and content, through checks and overlaps."""
    random = trial.random
    rows: Any = [[_number(random) for _ in range(4)] for _ in range(random.choice((0, 1, 2, 5)))]
    if random.random() < 0.2:
        rows = mutated(random, rows)
    trial.note(rows)
    boxes = b.as_boxes(rows)
    with np.errstate(all="ignore"):
        for found in (b.pairwise_iou(boxes, boxes), b.intersection_over_union(boxes, boxes)):
            finite = found[np.isfinite(found)]
            assert ((finite >= 0) & (finite <= 1 + 1e-9)).all(), found
        sorted_boxes = b.clamp_and_sort(boxes)
    known = sorted_boxes[np.isfinite(sorted_boxes).all(1)]
    assert (known[:, :2] <= known[:, 2:]).all()
    assert ((known >= 0) & (known <= 1)).all()
    b.validate_boxes(known, predicted=True)
    checked = b.validate_boxes(boxes, predicted=random.random() < 0.3)
    return f"{len(checked)} boxes"


def geometry(trial: Trial) -> str:
    """Letterbox, crop and flip: boxes stay in the square, and come back where they were."""
    random = trial.random
    width, height, size = _side(random), _side(random), random.choice((1, 2, 16, 224, 336, 1024, 0, -3))
    corners = sorted(random.random() for _ in range(2)), sorted(random.random() for _ in range(2))
    raw = np.array(
        [[corners[0][0], corners[1][0], corners[0][1], corners[1][1]], [_number(random) for _ in range(4)]], dtype=float
    )
    crop = None
    if random.random() < 0.6:
        x, y = sorted(random.random() for _ in range(2)), sorted(random.random() for _ in range(2))
        crop = b.Box(x[0], y[0], x[1], y[1])
    trial.note((width, height, size, crop, raw.tolist()))
    with np.errstate(all="ignore"):
        square = original_to_padded_square(raw[:1], width, height)
        assert np.allclose(padded_square_to_original(square, width, height), raw[:1], atol=1e-6)
        view = View(crop=crop, flip=random.random() < 0.5)
        placement = view.fit(width, height, size)
        moved, kept = placement.to_input(raw)
        finite = moved[np.isfinite(moved).all(1)]
        assert ((finite >= 0) & (finite <= 1)).all(), finite
        assert kept.shape == (2,)
        back = placement.to_original(moved)
        finite = back[np.isfinite(back).all(1)]
        assert ((finite >= 0) & (finite <= 1)).all(), finite
        letterbox = Letterbox(width, height, size)
        again = letterbox.to_original(letterbox.to_input(raw[:1]))
        assert np.allclose(again, raw[:1], atol=1e-6)
    return "placed"


def regions(trial: Trial) -> str:
    """A region as a file has it."""
    random = trial.random
    width, height = _side(random), _side(random)
    scale = width if random.random() < 0.7 else 1
    raw: Any = {
        "box": [_number(random, scale) for _ in range(4)],
        "phrase": "x",
        "format": random.choice(("xyxy", "xywh")),
        "unit": random.choice(("pixel", "normalized")),
        "score": random.random(),
    }
    if random.random() < 0.5:
        raw = mutated(random, raw)
    if random.random() < 0.02:
        raw = odd_value(random)
    trial.note((raw, width, height))
    outcome = read_region(raw, position=0, width=width, height=height)
    if isinstance(outcome, Problem):
        assert outcome.reason
        assert outcome.detail
        return outcome.reason
    _legal(outcome[0].box)
    assert 0 <= outcome[0].score <= 1
    check_row("regions", {**region_row("k", outcome[0]), "phrase": "x", "label": "", "slice": "", "source": ""})
    return "taken"


BOXES = {
    one.name: one
    for one in (
        Target("boxes", typed),
        Target("box-arrays", arrays),
        Target("geometry", geometry),
        Target("regions", regions),
    )
}
