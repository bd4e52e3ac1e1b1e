"""Encode the bytes of an image to frozen features, equal to those that training cached."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.records.geometry import View
from foveate.records.images import BadImage, check, decode_fraction
from foveate.vision.encoder import ImageEncoder
from foveate.vision.preprocess import DRAFT_PIXELS, Preprocess, compute_draft_side, place_image, render_image


def pixels(data: bytes, preprocess: Preprocess) -> Tensor:
    """Decode an image to uint8 pixels [3, S, S], as in training.

    Raises:
        BadImage: it is no image, too large, damaged, or so narrow that nothing of it would be left.
    """
    try:
        if preprocess.geometry == "letterbox":  # the model sees the whole image, so its size need not be known first
            min_side = math.ceil(DRAFT_PIXELS * preprocess.long_side)
        else:
            info = check(data)
            min_side = compute_draft_side(place_image(preprocess, (info.width, info.height), View()))
        image, size = decode_fraction(data, min_side=min_side)
        placement = place_image(preprocess, size, View())
    except BadImage:
        raise
    except UserError as problem:
        raise BadImage("too narrow", str(problem)) from problem
    return render_image(preprocess, image, placement)


@torch.inference_mode()
def features(images: Sequence[Tensor], encoder: ImageEncoder, device: torch.device) -> Tensor:
    """Compute frozen features [B, F] of pixels on `device`, in the precision in which they are cached."""
    features_BF = encoder.frozen_features(torch.stack(list(images)).to(device))
    return features_BF.to(encoder.feature_dtype)
