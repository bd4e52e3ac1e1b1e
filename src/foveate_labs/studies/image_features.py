"""Frozen EfficientNet-Lite0 features of the built-in images, for the studies that train on features alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.core.files import atomic_file
from foveate.core.progress import track
from foveate.records.geometry import View
from foveate.records.images import decode
from foveate.vision.lite0 import Lite0Encoder, unpack_maps
from foveate.vision.preprocess import place_image, render_image
from foveate_labs.worlds.builtin import Single, load_single_objects

SIDE, BATCH = 128, 32
LENGTH = 10.0


@dataclass(frozen=True)
class EncodedBatch:
    """Built-in images with both maps of the encoder: [B, rows, columns, channels]."""

    objects: tuple[Single, ...]
    images: tuple[Image.Image, ...]
    maps: tuple[Tensor, Tensor]

    @property
    def means(self) -> Tensor:
        """Means of both maps over positions, concatenated: [B, 432]."""
        return average_maps(self.maps)


def average_maps(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate the means over positions of maps [B, rows, columns, channels]."""
    return torch.cat([part.flatten(1, 2).mean(1) for part in maps], dim=1)


def encode_single_objects(
    encoder: Lite0Encoder,
    sources: Sequence[str],
    *,
    size: int,
    select: Callable[[Single], bool] = lambda _: True,
) -> Iterator[EncodedBatch]:
    """Yield all built-in images of some sources with the encoder's frozen features, in batches.

    Args:
        select: which images are encoded; the others are left out before batching.
    """
    tracked = chain.from_iterable(
        track(load_single_objects(source, size=size), description=f"features of {source}") for source in sources
    )
    # Batches are filled across sources: their size must not depend on where a source ends, since the last bits of
    # features depend on it.
    selected = filter(select, tracked)
    while objects := tuple(islice(selected, BATCH)):
        images = tuple(decode(single.data) for single in objects)
        pixels = [
            render_image(encoder.preprocess, image, place_image(encoder.preprocess, image.size, View()))
            for image in images
        ]
        with torch.inference_mode():
            features = encoder.frozen_features(torch.stack(pixels)).float()
        yield EncodedBatch(objects, images, unpack_maps(features, encoder.grid))


def write_image_features(path: Path) -> None:
    """Write an npz file with `points` [N, 432] float32 and `label`, the category, of the Noto emoji.

    Points are scaled to length 10: a constant, not a statistic of all clients' data, which no client has.
    """
    if path.is_file():
        return
    encoder = Lite0Encoder(image_size=SIDE, width=64, embed_dim=64).eval()
    batches = list(
        encode_single_objects(encoder, ["emoji"], size=SIDE, select=lambda single: single.labels["style"] == "noto")
    )
    points = [(LENGTH * torch.nn.functional.normalize(batch.means, dim=1)).numpy() for batch in batches]
    labels = [single.labels["category"] for batch in batches for single in batch.objects]
    with atomic_file(path) as handle:
        np.savez(handle, points=np.concatenate(points).astype(np.float32), label=np.array(labels))
