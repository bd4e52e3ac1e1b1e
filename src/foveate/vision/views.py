"""From an image of a collection to the square that the encoder sees, and where its boxes land."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.geometry import MIN_VISIBLE, Placement, View
from foveate.records.images import BadImage, decode_fraction
from foveate.vision.pixels import Preprocess

# Images of a request are decoded at no more than this times the model input's side.
DECODE_FACTOR = 2
# A JPEG is unpacked at a fraction that leaves at least this many of its pixels for each pixel of the input: measured
# on photographs, the features then differ from those of the whole image by less than a hundredth (docs/scaling.md).
DRAFT_PIXELS = 1.5


def placed(preprocess: Preprocess, image_size: tuple[int, int], view: View) -> Placement:
    """How a decoded image (width, height) lies in the model input; "center_crop" encoders see its middle."""
    width, height = image_size
    if preprocess.geometry == "center_crop" and view.crop is None:
        view = View(crop=View.center_crop(width, height, preprocess.size).crop, flip=view.flip)
    return view.place(width, height, preprocess.size, stretch=preprocess.geometry == "stretch")


def render(preprocess: Preprocess, image: Image.Image, placement: Placement) -> Tensor:
    """The uint8 pixels [3, height, width] of a placed image."""
    resample = Image.Resampling[preprocess.interpolation.upper()]
    return preprocess.pixels(placement.render(image, preprocess.fill, resample=resample))


def read(
    collection: Collection, row: int, preprocess: Preprocess, view: View | None = None
) -> tuple[Tensor, Placement]:
    """Decodes a row's image and shows it to the encoder.

    Raises:
        BadImage: when the image cannot be read, or is so narrow that nothing of it would be left.
    """
    view = view or View()
    size = (int(collection.index["width"][row]), int(collection.index["height"][row]))
    try:
        least_side = draft_side(placed(preprocess, size, view))
        image, size = decode_fraction(collection.image_bytes(row), least_side=least_side)
        placement = placed(preprocess, size, view)
    except BadImage:
        raise
    except UserError as problem:
        raise BadImage("too narrow", str(problem)) from problem
    return render(preprocess, image, placement), placement


def draft_side(placement: Placement) -> int:
    """The longer side, in pixels, that an image must be unpacked at for its crop to fill the model input well."""
    x1, y1, x2, y2 = placement.crop_px
    longer = max(placement.width, placement.height)
    if placement.stretch:
        return longer  # models that squash images were trained on pixels of the whole one
    width, height = placement.letterbox.resized
    return math.ceil(max(DRAFT_PIXELS * width * longer / (x2 - x1), DRAFT_PIXELS * height * longer / (y2 - y1)))


def input_boxes(
    placement: Placement, boxes_R4: np.ndarray, *, min_visible: float = MIN_VISIBLE
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the image in the model input (float32), and which rows are still visible."""
    moved_K4, kept_R = placement.to_input(boxes_R4, min_visible=min_visible)
    moved_K4 = moved_K4.astype(np.float32)
    wide_K = (moved_K4[:, 2:] > moved_K4[:, :2]).all(1)  # float32 may close a box that was open
    kept_R[np.flatnonzero(kept_R)[~wide_K]] = False
    return moved_K4[wide_K], kept_R
