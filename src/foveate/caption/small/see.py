"""From the bytes of a picture to its frozen features, safely, and the same as those that training cached."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.records.geometry import View
from foveate.records.pictures import BadPicture, check, decode_fraction
from foveate.settings.errors import UserError
from foveate.vision.encoder import ImageEncoder
from foveate.vision.pixels import Preprocess
from foveate.vision.views import DRAFT_PIXELS, draft_side, placed, render


def pixels(picture: bytes, preprocess: Preprocess) -> Tensor:
    """The uint8 pixels [3, S, S] of the whole picture, as in training.

    Raises:
        BadPicture: when it is no picture, too large, damaged, or so narrow that nothing of it would be left.
    """
    try:
        if preprocess.geometry == "letterbox":  # all of the picture is seen: its size need not be known first
            least_side = math.ceil(DRAFT_PIXELS * preprocess.size)
        else:
            info = check(picture)
            least_side = draft_side(placed(preprocess, (info.width, info.height), View()))
        image, size = decode_fraction(picture, least_side=least_side)
        placement = placed(preprocess, size, View())
    except BadPicture:
        raise
    except UserError as problem:
        raise BadPicture("too narrow", str(problem)) from problem
    return render(preprocess, image, placement)


@torch.inference_mode()
def features(pictures: Sequence[Tensor], encoder: ImageEncoder, device: torch.device) -> Tensor:
    """Frozen features [B, F] of pixels, on `device`, in the precision in which they are cached."""
    made = encoder.frozen_features(torch.stack(list(pictures)).to(device))
    return made.to(encoder.feature_dtype)
