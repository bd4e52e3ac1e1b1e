"""Letterbox, stretch, crop and flip, with the same numbers for pixels and boxes.

The model input is a square, or a rectangle of (height, width). In a letterbox an image keeps its aspect: it is resized
to fit and the rest is padding on both sides (the rounding rules are those of TensorFlow's `resize_with_pad`). Stretched
it fills the input whatever its aspect. Boxes are fractions of the original image on one side and fractions of the
input, padding included, on the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.boxes import Box, PixelBox, areas, as_boxes

# If a crop keeps less than this fraction of a box's area, the phrase no longer describes it.
MIN_VISIBLE = 0.3


# Side of a square model input in pixels, or (height, width).
InputSize = int | tuple[int, int]


def input_width_height(size: InputSize) -> tuple[int, int]:
    """Return the width and height in pixels of a model input."""
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def _describe_input(size: InputSize) -> str:
    width, height = input_width_height(size)
    return f"a square of {width}" if width == height else f"{width} x {height}"


class Padding(NamedTuple):
    """Pixels of padding on each side of the resized image."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Letterbox:
    """An image of `width` by `height` pixels in an input of `size`, aspect kept, padding centered.

    Resized sides and left or upper padding are rounded down in exact integer arithmetic, so the right or lower padding
    can be up to two pixels larger.

    Raises:
        UserError: a side is not positive, or the image is so narrow that its short side becomes 0 pixels.

    >>> Letterbox(640, 480, 224).resized
    (224, 168)
    >>> Letterbox(640, 480, 224).to_input([[0.0, 0.0, 1.0, 1.0]]).tolist()
    [[0.0, 0.125, 1.0, 0.875]]
    """

    width: int
    height: int
    size: InputSize

    def __post_init__(self) -> None:
        if min(self.width, self.height, *input_width_height(self.size)) < 1:
            raise UserError(
                f"image {self.width} x {self.height} into {_describe_input(self.size)}: sides must be at least 1 pixel"
            )
        if min(self.resized) < 1:
            raise UserError(
                f"image {self.width} x {self.height} is too narrow for {_describe_input(self.size)}: "
                "its short side would become 0 pixels"
            )

    @property
    def _fills_width(self) -> bool:
        """Whether the image is at least as wide for its height as the input is."""
        input_width, input_height = input_width_height(self.size)
        # Cross-multiplied: a division would let rounding decide.
        return self.width * input_height >= self.height * input_width

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height in pixels of the image inside the input."""
        input_width, input_height = input_width_height(self.size)
        if self._fills_width:
            return input_width, self.height * input_width // self.width
        return self.width * input_height // self.height, input_height

    @property
    def pad(self) -> Padding:
        """Padding in pixels; the left and upper parts are half the *unrounded* rest, rounded down."""
        input_width, input_height = input_width_height(self.size)
        width, height = self.resized
        left = top = 0
        if self._fills_width:
            top = (input_height * self.width - self.height * input_width) // (2 * self.width)
        else:
            left = (input_width * self.height - self.width * input_height) // (2 * self.height)
        return Padding(left, top, input_width - width - left, input_height - height - top)

    @property
    def content_box(self) -> Box:
        """The part of the square that shows the image, in fractions of the square."""
        width, height = self.resized
        pixels = PixelBox(self.pad.left, self.pad.top, self.pad.left + width, self.pad.top + height)
        return Box.from_pixels(pixels, *input_width_height(self.size))

    def _scale_and_shift(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sides_4 = np.array(input_width_height(self.size) * 2)
        return np.array(self.resized * 2) / sides_4, np.array(self.pad[:2] * 2) / sides_4

    def to_input(self, boxes_R4: ArrayLike) -> NDArray[np.float64]:
        """Map boxes in [0, 1] of the image to [0, 1] of the square, inside `content_box`; shape [R, 4]."""
        scale_4, shift_4 = self._scale_and_shift()
        low, high = np.split(self.content_box.to_array(), 2)
        # Rounding must not put an edge into the padding.
        return (as_boxes(boxes_R4) * scale_4 + shift_4).clip(np.tile(low, 2), np.tile(high, 2))

    def to_original(self, boxes_R4: ArrayLike) -> NDArray[np.float64]:
        """Map boxes in [0, 1] of the square to [0, 1] of the image, shape [R, 4]; padding is clipped.

        A box completely on the padding becomes an empty box at the edge of the image.
        """
        scale_4, shift_4 = self._scale_and_shift()
        return ((as_boxes(boxes_R4) - shift_4) / scale_4).clip(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Stretch:
    """An image that fills an input of `size` whatever its aspect; as `Letterbox` without padding."""

    size: InputSize

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height in pixels of the image: those of the input."""
        return input_width_height(self.size)

    @property
    def pad(self) -> Padding:
        """No padding."""
        return Padding(0, 0, 0, 0)

    @property
    def content_box(self) -> Box:
        """The whole input."""
        return Box(0.0, 0.0, 1.0, 1.0)

    def to_input(self, boxes_R4: ArrayLike) -> NDArray[np.float64]:
        """Map boxes [R, 4] in [0, 1] of the image to the input: the same fractions, clipped."""
        return as_boxes(boxes_R4).clip(0.0, 1.0)

    def to_original(self, boxes_R4: ArrayLike) -> NDArray[np.float64]:
        """Map boxes [R, 4] in [0, 1] of the input to the image: the same fractions, clipped."""
        return as_boxes(boxes_R4).clip(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class View:
    """The part of an image that a model sees: an optional crop (in [0, 1] of the original), then a flip."""

    crop: Box | None = None
    flip: bool = False

    @classmethod
    def center_crop(cls, width: int, height: int, size: InputSize = 1) -> View:
        """Return the view of the largest centered part with the aspect of an input of `size`: no padding remains."""
        input_width, input_height = input_width_height(size)
        if width * input_height >= height * input_width:
            # At least one pixel remains where integer division gives 0, for an input with an extreme aspect.
            crop_width, crop_height = max(1, height * input_width // input_height), height
        else:
            crop_width, crop_height = width, max(1, width * input_height // input_width)
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return cls(crop=Box.from_pixels(PixelBox(left, top, left + crop_width, top + crop_height), width, height))

    def fit(self, width: int, height: int, size: InputSize, *, stretch: bool = False) -> Placement:
        """Fit this view of an image of `width` by `height` pixels into an input of `size`.

        Args:
            stretch: fill the input whatever the aspect, instead of padding it.
            width, height: of the image that is really rendered (after scaled decoding), so that the crop
                falls on the same whole pixels for the image and for its boxes.

        Raises:
            UserError: see `Letterbox`.
        """
        if self.crop is None:
            return Placement(width, height, (0, 0, width, height), self.flip, size, stretch)
        pixels = self.crop.to_pixels(width, height)
        x1, x2 = _whole_pixels(pixels.x1, pixels.x2, width)
        y1, y2 = _whole_pixels(pixels.y1, pixels.y2, height)
        return Placement(width, height, (x1, y1, x2, y2), self.flip, size, stretch)

    def render(
        self,
        image: Image.Image,
        size: InputSize,
        fill: tuple[int, int, int] = (0, 0, 0),
        *,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Image.Image:
        """Render the RGB model input that shows this view; see `Placement.render`."""
        return self.fit(image.width, image.height, size).render(image, fill, resample=resample)


def _whole_pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    """Round an interval to whole pixels of [0, limit], at least one pixel long."""
    # A crop at the far edge may round to the edge itself; it keeps the last pixel.
    start = min(round(low), limit - 1)
    return start, max(round(high), start + 1)


@dataclass(frozen=True, slots=True)
class Placement:
    """A `View` of an image of known size, with one set of numbers for its pixels and its boxes.

    Args:
        width, height: the image in pixels.
        crop_px: x1, y1, x2, y2 of the crop in whole pixels.
        flip: mirrored left to right after the crop.
        size: side of a square model input in pixels, or (height, width).
        stretch: the crop fills the input whatever its aspect.
    """

    width: int
    height: int
    crop_px: tuple[int, int, int, int]
    flip: bool
    size: InputSize
    stretch: bool = False

    def __post_init__(self) -> None:
        x1, y1, x2, y2 = self.crop_px
        assert 0 <= x1 < x2 <= self.width, self
        assert 0 <= y1 < y2 <= self.height, self
        _ = self.letterbox  # a crop that is too narrow is refused here, before any pixel is read

    @property
    def letterbox(self) -> Letterbox | Stretch:
        """Scale and padding of the cropped image in the input."""
        if self.stretch:
            return Stretch(self.size)
        x1, y1, x2, y2 = self.crop_px
        return Letterbox(x2 - x1, y2 - y1, self.size)

    @property
    def _crop_4(self) -> NDArray[np.float64]:
        return np.array(self.crop_px) / np.array((self.width, self.height) * 2)

    def visible_fraction(self, boxes_R4: ArrayLike) -> NDArray[np.float64]:
        """Return the fraction of the area of each box inside the crop, shape [R], in [0, 1]."""
        boxes = as_boxes(boxes_R4)
        visible = areas(boxes.clip(np.tile(self._crop_4[:2], 2), np.tile(self._crop_4[2:], 2)))
        whole = areas(boxes)
        return np.divide(visible, whole, out=np.zeros_like(whole), where=whole > 0)

    def to_input(
        self, boxes_R4: ArrayLike, *, min_visible: float = MIN_VISIBLE
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Map boxes in [0, 1] of the original image to [0, 1] of the square, clipped by the crop.

        Args:
            min_visible: boxes with a smaller visible fraction are dropped.

        Returns:
            The visible boxes in order, shape [K, 4], and the mask of their rows, shape [R].
        """
        boxes = as_boxes(boxes_R4)
        low, high = np.tile(self._crop_4[:2], 2), np.tile(self._crop_4[2:], 2)
        inside = ((boxes - low) / (high - low)).clip(0.0, 1.0)
        if self.flip:
            inside = _mirror(inside)
        moved = self.letterbox.to_input(inside)
        visible_R = self.visible_fraction(boxes)
        # Above 0 even with a `min_visible` of 0: a box outside of the crop has nothing to show.
        kept_R = (visible_R >= min_visible) & (visible_R > 0) & (areas(moved) > 0)
        return moved[kept_R], kept_R

    def to_original(self, boxes_R4: ArrayLike) -> NDArray[np.float64]:
        """Map boxes in [0, 1] of the square to [0, 1] of the original, shape [R, 4]; padding is clipped."""
        inside = self.letterbox.to_original(boxes_R4)
        if self.flip:
            inside = _mirror(inside)
        low, high = np.tile(self._crop_4[:2], 2), np.tile(self._crop_4[2:], 2)
        return (inside * (high - low) + low).clip(0.0, 1.0)

    def render(
        self,
        image: Image.Image,
        fill: tuple[int, int, int] = (0, 0, 0),
        *,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Image.Image:
        """Render the RGB model input: crop, resize, mirror, then pad with the color `fill`.

        Args:
            image: the image, or its half, quarter or eighth with both sides rounded up (a JPEG decoded at a
                fraction, see `foveate.records.images.decode_fraction`).

        Raises:
            UserError: the image does not have this placement's size.
        """
        step = self._find_fraction(image)
        content = image if image.mode == "RGB" else image.convert("RGB")
        box = None
        if step > 1:
            x1, y1, x2, y2 = self.crop_px
            # A JPEG may be decoded at a fraction of its size; the box of Pillow's resize takes parts of pixels.
            box = (x1 / step, y1 / step, x2 / step, y2 / step)
        elif self.crop_px != (0, 0, self.width, self.height):
            content = content.crop(self.crop_px)
        if self.stretch:
            return self._render_stretched(content, box, resample)
        # Large images are first averaged in whole steps, which saves half of the time and more for images six times as
        # large. It changes pixels by at most 3 of 255 (docs/methods/training.md); a gap of 2.0 would change them by 8.
        gap = None if resample == Image.Resampling.NEAREST else 3.0
        content = content.resize(self.letterbox.resized, resample, box=box, reducing_gap=gap)
        if self.flip:
            content = content.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas = Image.new("RGB", input_width_height(self.size), fill)
        canvas.paste(content, self.letterbox.pad[:2])
        return canvas

    def _render_stretched(
        self, content: Image.Image, box: tuple[float, float, float, float] | None, resample: Image.Resampling
    ) -> Image.Image:
        # Two explicit passes, width first: Pillow 13 swaps the passes of one call for tall images, and because values
        # are rounded between them, pixels would differ by 2 to 8 of 255 from those that models were trained on.
        width, height = input_width_height(self.size)
        x1, y1, x2, y2 = box or (0, 0, content.width, content.height)
        content = content.resize((width, math.ceil(y2 - y1)), resample, box=(x1, y1, x2, y2))
        content = content.resize((width, height), resample)
        return content.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else content

    def _find_fraction(self, image: Image.Image) -> int:
        """Return 1, 2, 4 or 8: how much smaller the image is than that of this placement."""
        for step in (1, 2, 4, 8):
            if image.size == (-(-self.width // step), -(-self.height // step)):
                return step
        raise UserError(
            f"a placement for {self.width} x {self.height} cannot render an image of {image.width} x {image.height}"
        )


def _mirror(boxes_R4: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack((1 - boxes_R4[:, 2], boxes_R4[:, 1], 1 - boxes_R4[:, 0], boxes_R4[:, 3]), axis=1)


def original_to_padded_square(boxes_R4: ArrayLike, width: int, height: int) -> NDArray[np.float64]:
    """Map boxes in [0, 1] of an image to [0, 1] of its square padded right and below; shape [R, 4]."""
    return as_boxes(boxes_R4) * np.array((width, height) * 2) / max(width, height)


def padded_square_to_original(boxes_R4: ArrayLike, width: int, height: int) -> NDArray[np.float64]:
    """Map boxes in [0, 1] of the square padded right and below (OWLv2) to [0, 1] of the image, clipped.

    A box completely on the padding becomes an empty box at the edge: drop boxes thinner than a pixel afterwards.
    """
    return (as_boxes(boxes_R4) * max(width, height) / np.array((width, height) * 2)).clip(0.0, 1.0)
