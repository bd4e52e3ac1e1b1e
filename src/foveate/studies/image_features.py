"""Built-in images as points: frozen features of the Noto emoji, with the category of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.files import atomic_file
from foveate.core.progress import track
from foveate.records.builtin.single_objects import load_single_objects
from foveate.records.geometry import View
from foveate.records.images import decode
from foveate.vision.lite0 import Lite0Encoder, unpack_maps
from foveate.vision.preprocess import place_image, render_image

SIDE, BATCH = 128, 32
LENGTH = 10.0


def pooled(maps: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Both maps of EfficientNet-Lite0 in the mean over positions, side by side, scaled to length 10: [B, 432].

    The length is a constant, not a statistic of all clients' data, which no client has.
    """
    flat = torch.cat([part.flatten(1, 2).mean(1) for part in maps], dim=1)
    return LENGTH * torch.nn.functional.normalize(flat, dim=1)


def write_image_features(path: Path) -> None:
    """Writes an npz file with `points` [N, 432] float32 and `label`, the category, unless it is there."""
    if path.is_file():
        return
    encoder = Lite0Encoder(image_size=SIDE, width=64, embed_dim=64).eval()
    points: list[NDArray[np.float32]] = []
    labels: list[str] = []
    pixels: list[torch.Tensor] = []

    def flush() -> None:
        if pixels:
            with torch.inference_mode():
                features = encoder.frozen_features(torch.stack(pixels)).float()
            points.append(pooled(unpack_maps(features, encoder.grid)).numpy())
            pixels.clear()

    for single in track(load_single_objects("emoji", size=SIDE), description="emoji features"):
        if single.labels["style"] != "noto":
            continue
        image = decode(single.data)
        pixels.append(render_image(encoder.preprocess, image, place_image(encoder.preprocess, image.size, View())))
        labels.append(single.labels["category"])
        if len(pixels) == BATCH:
            flush()
    flush()
    with atomic_file(path) as handle:
        np.savez(handle, points=np.concatenate(points).astype(np.float32), label=np.array(labels))
