"""One image before the encoder: read, decoded, encoded once for all that is asked about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from foveate.core.errors import UserError
from foveate.records.geometry import Placement, View
from foveate.records.images import BadImage, check, decode
from foveate.vision.encoder import ImageTokens
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.views import DECODE_FACTOR, placed, render


def read_image(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        UserError: when there is none.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class Seen:
    """One image as the encoder has seen it; `width` and `height` in pixels after its EXIF rotation."""

    tokens: ImageTokens
    placement: Placement
    width: int
    height: int


@torch.inference_mode()
def see(model: LocalizingModel, data: bytes) -> Seen:
    """Decodes and encodes one image.

    Raises:
        UserError: with the reason, when it cannot be read.
    """
    preprocess = model.image_encoder.preprocess
    try:
        info = check(data)
        image = decode(data, longest_side=DECODE_FACTOR * preprocess.size)
    except BadImage as problem:
        raise UserError(f"the image cannot be read: {problem}") from problem
    placement = placed(preprocess, image.size, View())
    tokens = model.encode_image_tokens(render(preprocess, image, placement)[None])
    return Seen(tokens, placement, info.width, info.height)
