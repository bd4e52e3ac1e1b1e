"""From a decoded image to the numbers an encoder eats, and the record of how (`preprocess.json`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError, choose, nearest
from foveate.records.geometry import InputSize

GEOMETRIES = ("letterbox", "center_crop", "stretch")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocess:
    """How pixels reach an encoder.

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
            raise UserError(f"preprocess.size {self.size}: expected an integer from 1, or [height, width]")
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
        raise UserError(f"preprocess.size {self.height} x {self.width}: expected a square, one side in pixels")

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
            raise UserError(f"the model input is {self.width} x {self.height} px, not {width} x {height} px")
        array_HW3 = np.asarray(image.convert("RGB"), dtype=np.uint8)
        return torch.from_numpy(np.ascontiguousarray(array_HW3.transpose(2, 0, 1)))

    def normalize(self, pixels_B3HW: Tensor) -> Tensor:
        """uint8 [..., 3, H, W] to float32: (x / 255 - mean) / std."""
        mean, std = (torch.tensor(values, device=pixels_B3HW.device)[:, None, None] for values in (self.mean, self.std))
        return (pixels_B3HW.float() / 255 - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the content of a model folder's `preprocess.json`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`.

        Raises:
            UserError: for an unknown or missing key.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                listed = ", ".join(known)
                raise UserError(f"preprocess: unknown key '{key}': allowed are {listed}{nearest(key, known)}")
        for key in ("size", "mean", "std"):
            if key not in values:
                raise UserError(f"preprocess: key '{key}' is missing")
        options: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**options)
