"""Preprocessing: from an image to the pixels of a model input, and where its boxes land there.

`Preprocess` is also the content of a model folder's `preprocess.json`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError, choose, nearest
from foveate.core.files import read_json
from foveate.records.collection import Collection
from foveate.records.geometry import MIN_VISIBLE, InputSize, Placement, View
from foveate.records.images import MAX_DECODED_PIXELS, BadImage, decode_fraction, read_image_info

GEOMETRIES = ("letterbox", "center_crop", "stretch")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
# Images of a request are decoded at no more than this times the model input's side.
DECODE_FACTOR = 2
# A JPEG is unpacked at a fraction that leaves at least this many of its pixels for each pixel of the input: measured
# on photographs, the features then differ from those of the whole image by less than a hundredth (docs/scaling.md).
DRAFT_PIXELS = 1.5


@dataclass(frozen=True)
class Preprocess:
    """Size, geometry and normalization of a model input.

    Attributes:
        size: side of a square model input in pixels, or (height, width).
        mean, std: per RGB channel, of values in [0, 1].
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        fill: RGB color 0..255 of the padding. Zero padding as in the paper is black.
        geometry: "letterbox" (aspect kept, centered padding, boxes stay whole), "center_crop" (aspect kept, the
            middle alone) or "stretch" (the whole image, aspect not kept, resized in two passes, width first).
    """

    size: InputSize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    fill: tuple[int, int, int] = (0, 0, 0)
    geometry: str = "letterbox"

    def __post_init__(self) -> None:
        choose(self.geometry, GEOMETRIES, "preprocess.geometry")
        choose(self.interpolation, INTERPOLATIONS, "preprocess.interpolation")
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise UserError(
                f"preprocess.size: not a size in pixels (got {self.size}); expected an integer >= 1 or [height, width]"
            )
        if sides[0] == sides[1]:
            object.__setattr__(self, "size", sides[0])  # one way to write a square, in files and comparisons

    @property
    def height(self) -> int:
        """Height of the model input in pixels."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Width of the model input in pixels."""
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def side(self) -> int:
        """Side of a square model input in pixels.

        Raises:
            UserError: where it is not square.
        """
        if isinstance(self.size, int):
            return self.size
        raise UserError(
            f"preprocess.size: not a square (got {self.height} x {self.width}); expected one side in pixels"
        )

    @property
    def long_side(self) -> int:
        """The longer side of the model input in pixels."""
        return max(self.height, self.width)

    @property
    def size_name(self) -> str:
        """The size in names of caches: "224px", or "224x448px" for (height, width)."""
        return f"{self.size}px" if isinstance(self.size, int) else f"{self.height}x{self.width}px"

    def pixels(self, image: Image.Image) -> Tensor:
        """Return an image that has the size of the input as uint8 [3, height, width].

        Raises:
            UserError: if the image has another size (fit it with `foveate.records.geometry` first).
        """
        if image.size != (self.width, self.height):
            width, height = image.size
            raise UserError(
                f"image: not the model's input size (got {width} x {height}); expected {self.width} x {self.height} px"
            )
        array_HW3 = np.asarray(image.convert("RGB"), dtype=np.uint8)
        return torch.from_numpy(np.ascontiguousarray(array_HW3.transpose(2, 0, 1)))

    def normalize(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalize uint8 [..., 3, H, W] to float32: (x / 255 - mean) / std."""
        # [3, 1, 1], so that they broadcast over height and width.
        mean, std = (torch.tensor(values, device=pixels_B3HW.device)[:, None, None] for values in (self.mean, self.std))
        # In place on one copy: the same bits as the formula, 3 to 4 times as fast on views of megapixels.
        return pixels_B3HW.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, the content of `preprocess.json`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Read what `to_dict` wrote.

        Raises:
            UserError: for an unknown or missing key.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                listed = ", ".join(known)
                raise UserError(f"preprocess: unknown key '{key}'; expected one of {listed}{nearest(key, known)}")
        # No defaults for these: a guess would change every embedding without an error.
        for key in ("size", "mean", "std"):
            if key not in values:
                raise UserError(f"preprocess: key '{key}' is missing")
        options: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**options)


def check_preprocess(path: Path, preprocess: Preprocess) -> None:
    """Check that the `preprocess.json` of a model folder is the preprocessing of its encoder.

    The file is for other programs; ours follows the config. Where the two differ, either would be a guess.

    Raises:
        UserError: the file is missing or differs; the error names the key.
    """
    values, expected = read_json(path), preprocess.to_dict()
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object (got {type(values).__name__})")
    stored = Preprocess.from_dict(values).to_dict()
    for key, value in expected.items():
        if stored[key] != value:
            raise UserError(f"{path}: key '{key}' is {stored[key]}; expected {value} as in the encoder's settings")


def place_image(preprocess: Preprocess, image_size: tuple[int, int], view: View) -> Placement:
    """Place a decoded image of (width, height) in the model input; a view's own crop replaces the center crop."""
    width, height = image_size
    if preprocess.geometry == "center_crop" and view.crop is None:
        view = View(crop=View.center_crop(width, height, preprocess.size).crop, flip=view.flip)
    return view.fit(width, height, preprocess.size, stretch=preprocess.geometry == "stretch")


def squash(image: Image.Image, size: InputSize) -> Image.Image:
    """Resize a whole image to `size` as RGB, bicubic, aspect not kept: width first, then height.

    Args:
        size: side in pixels, or (height, width).

    Source: SlowFast-LLaVA (arXiv 2407.15841), `process_images` of the official code with Pillow before 13.
    """
    return View().fit(*image.size, size, stretch=True).render(image, resample=Image.Resampling.BICUBIC)


def render_image(preprocess: Preprocess, image: Image.Image, placement: Placement) -> Tensor:
    """Render a placed image as uint8 pixels [3, height, width]."""
    resample = Image.Resampling[preprocess.interpolation.upper()]
    return preprocess.pixels(placement.render(image, preprocess.fill, resample=resample))


def read_image(
    collection: Collection, row: int, preprocess: Preprocess, view: View | None = None
) -> tuple[Tensor, Placement]:
    """Decode the image of a row and render it, with its placement for the boxes.

    Raises:
        BadImage: the image cannot be read, or is so narrow that nothing of it would be left.

    Example:
        >>> preprocess = open_model(model_folder).network.image_encoder.preprocess
        >>> pixels, placement = read_image(Collection.open(collection_folder), 0, preprocess)
        >>> pixels.shape
        torch.Size([3, 64, 64])
    """
    # The sizes in the index let a JPEG be decoded at the right fraction without opening it twice.
    size = (int(collection.index["width"][row]), int(collection.index["height"][row]))
    return render_file(collection.image_bytes(row), preprocess, view, size=size)


def render_file(
    data: bytes,
    preprocess: Preprocess,
    view: View | None = None,
    *,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_DECODED_PIXELS,
) -> tuple[Tensor, Placement]:
    """Decode the bytes of an image file and render it, with its placement for boxes.

    Args:
        size: width and height in pixels, where they are known; read from the header otherwise.
        max_pixels: of an image that is decoded.

    Raises:
        BadImage: the image cannot be read, or is so narrow that nothing of it would be left.
    """
    view = view or View()
    try:
        if size is None:
            info = read_image_info(data, max_pixels=max_pixels)[0]
            size = (info.width, info.height)
        min_side = compute_draft_side(place_image(preprocess, size, view))
        # Placed again: the whole size that the decoder saw counts, not the one in the index.
        image, size = decode_fraction(data, min_side=min_side, max_pixels=max_pixels)
        placement = place_image(preprocess, size, view)
    except BadImage:
        raise
    except UserError as problem:
        raise BadImage("too narrow", str(problem)) from problem
    return render_image(preprocess, image, placement), placement


def compute_draft_side(placement: Placement) -> int:
    """Return the longer side in pixels that a JPEG must be decoded at for its crop to fill the model input."""
    x1, y1, x2, y2 = placement.crop_px
    longer = max(placement.width, placement.height)
    if placement.stretch:
        return longer  # models that squash images were trained on pixels of the whole one
    width, height = placement.letterbox.resized
    return math.ceil(max(DRAFT_PIXELS * width * longer / (x2 - x1), DRAFT_PIXELS * height * longer / (y2 - y1)))


def move_boxes(
    placement: Placement, boxes_R4: np.ndarray, *, min_visible: float = MIN_VISIBLE
) -> tuple[np.ndarray, np.ndarray]:
    """Move boxes [R, 4] of an image into the model input; return those still visible (float32) and their mask [R]."""
    moved_K4, visible_R = placement.to_input(boxes_R4, min_visible=min_visible)
    moved_K4 = moved_K4.astype(np.float32)
    wide_K = (moved_K4[:, 2:] > moved_K4[:, :2]).all(1)  # float32 may close a box that was open
    visible_R[np.flatnonzero(visible_R)[~wide_K]] = False
    return moved_K4[wide_K], visible_R
