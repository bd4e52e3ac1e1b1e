"""Compare the images of a fixed camera with the median of its frames: what stands out there came and went.

A stone looks alike in every frame, an animal does not. Frames are compared as small gray images, divided by their local
contrast, so that clouds and dusk change little; frames by day and by infrared light have a median each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from foveate.records.boxes import as_boxes
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.survey.survey import Survey

MIN_EVENTS = 8
"""Events of one light from which a camera has a background: in fewer an animal may be in half of them."""
_SIZE = 80, 60  # width and height of compared frames: leaves in the wind blur, an animal stays
_MAX_FRAMES = 200  # of a median
_GRAY_LEVELS = 8  # mean difference of the color channels, below which a frame is one of infrared light
_NEAR, _FAR = 1.0, 8.0  # pixels: of noise, and of the surroundings that contrast is local to
_MIN_CONTRAST = 4.0  # levels: noise of a black sky is no change
# Chosen on half of the cameras of a generated world, as the share of the change that a box has and its least factor:
# a box that NanoDet and Lite0 are sure of counts although nothing changed, for animals rest.
_FULL_CHANGE, MIN_FACTOR = 4.0, 0.5


def normalize_frames(frames_FHW: ArrayLike) -> NDArray[np.float32]:
    """Return gray frames [F, H, W] minus their local mean, over their local contrast."""
    frames = gaussian_filter(np.asarray(frames_FHW, dtype=np.float32), (0, _NEAR, _NEAR))
    local = frames - gaussian_filter(frames, (0, _FAR, _FAR))
    normalized = local / (np.sqrt(gaussian_filter(local**2, (0, _FAR, _FAR))) + _MIN_CONTRAST)
    return np.asarray(normalized, dtype=np.float32)


def weigh_boxes(
    frame_HW: NDArray[np.float32], median_HW: NDArray[np.float32], boxes_K4: ArrayLike
) -> NDArray[np.float64]:
    """Return the factor [K] of each box's score, `MIN_FACTOR` where the frame is the median to 1 where it changed.

    A change is measured in the median change of the whole frame: wind moves all of it.

    Args:
        frame_HW, median_HW: of `normalize_frames`. boxes_K4: x1, y1, x2, y2 in [0, 1].
    """
    height, width = frame_HW.shape
    change = gaussian_filter(np.abs(frame_HW - median_HW), 1.5)
    change = change / (np.median(change) + 0.05)
    factors = []
    for x1, y1, x2, y2 in as_boxes(boxes_K4).clip(0, 1):
        left, top = min(int(x1 * width), width - 1), min(int(y1 * height), height - 1)
        right, bottom = max(int(np.ceil(x2 * width)), left + 1), max(int(np.ceil(y2 * height)), top + 1)
        # Not the mean: an animal fills a part of its box.
        factors.append(np.percentile(change[top:bottom, left:right], 75) / _FULL_CHANGE)
    return np.clip(np.array(factors, dtype=np.float64), MIN_FACTOR, 1.0)


def find_factors(collection: Collection) -> tuple[NDArray[np.float64], int]:
    """Return the factor of each region of a collection, 1 without a background, and the images that have one.

    The median is of one frame an event, so that an animal that stays for a burst is in one of them.
    """
    regions, survey = collection.grouped("regions"), Survey.open(collection)
    factors_B = np.ones(len(regions.row_numbers))
    events, num_images = survey.events().event_N, 0
    for camera in dict.fromkeys(survey.camera_N.tolist()):
        rows, frames, is_gray = [], [], []
        for row in np.flatnonzero(survey.camera_N == camera).tolist():
            try:
                image = decode(collection.image_bytes(row), longest_side=2 * _SIZE[0])
            except BadImage:
                continue
            pixels = np.asarray(image, dtype=np.int16)
            is_gray.append(bool((pixels.max(axis=2) - pixels.min(axis=2)).mean() <= _GRAY_LEVELS))
            frames.append(np.asarray(image.convert("L").resize(_SIZE, Image.Resampling.BOX)))
            rows.append(row)
        for light in (True, False):
            members = [index for index, gray in enumerate(is_gray) if gray == light]
            first = list({int(events[rows[index]]): index for index in reversed(members)}.values())
            if len(first) < MIN_EVENTS:
                continue
            sample = [
                first[index] for index in np.linspace(0, len(first) - 1, min(len(first), _MAX_FRAMES)).astype(int)
            ]
            median = np.median(normalize_frames([frames[index] for index in sample]), axis=0)
            num_images += len(members)
            for index in members:
                start, end = regions.bounds(rows[index])
                if end > start:
                    frame = normalize_frames([frames[index]])[0]
                    factors_B[start:end] = weigh_boxes(frame, median, collection.region_boxes[start:end])
    return factors_B, num_images
