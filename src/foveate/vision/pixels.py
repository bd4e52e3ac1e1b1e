"""From a decoded image to the numbers an encoder eats, and the record of how (`preprocess.json`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError, choose, nearest

GEOMETRIES = ("letterbox", "center_crop")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocess:
    """How pixels reach an encoder.

    Attributes:
        size: side of the square model input in pixels.
        mean, std: per RGB channel, of values in [0, 1].
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        fill: RGB color 0..255 of the padding. Zero padding as in the paper is black.
        geometry: "letterbox" (long side to `size`, centered padding, boxes stay whole) or "center_crop".
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    fill: tuple[int, int, int] = (0, 0, 0)
    geometry: str = "letterbox"

    def __post_init__(self) -> None:
        choose(self.geometry, GEOMETRIES, "preprocess.geometry")
        choose(self.interpolation, INTERPOLATIONS, "preprocess.interpolation")
        if self.size < 1:
            raise UserError(f"preprocess.size {self.size}: allowed are integers from 1")

    def pixels(self, image: Image.Image) -> Tensor:
        """An image that is already `size` x `size` as uint8 [3, size, size].

        Raises:
            UserError: if the image has another size (fit it with `foveate.records.geometry` first).
        """
        if image.size != (self.size, self.size):
            width, height = image.size
            raise UserError(f"the model input is {self.size} x {self.size} px, not {width} x {height} px")
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
