"""Feature cache: the frozen part of an image encoder, computed once per image and view, on disk.

An entry's key is the hash of the image's bytes and its view, the folder's name is a hash of the encoder, its
preprocessing and how images are unpacked: a new image costs its own features only, and nothing stale is ever read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.records.collection import Collection
from foveate.records.geometry import Placement, View
from foveate.records.images import DECODING_VERSION, BadImage
from foveate.vision.encoder import ImageEncoder
from foveate.vision.feature_store import FeatureStore, Share, keys_of
from foveate.vision.parallel_map import map_on_cores
from foveate.vision.preprocess import place_image, read_image

PART = 256  # entries of a file: what a killed process has to compute again at most
_BATCH, _BATCH_OF_A_CORE = 64, 16
ViewOf = Callable[[int, int], View]


class FeatureCache:
    """Cached frozen features of `rows` x `views`.

    Args:
        rows: ascending.
        view_of: (row, view number) -> the view; view number 0 .. views - 1. The view itself is part of the key:
            whatever it depends on (seed, texts that forbid mirroring), boxes always move with the pixels.
        share: rank and number of the processes that fill the cache together.

    Attributes:
        bad: row -> reason, of images that could not be read.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        collection: Collection,
        rows: NDArray[np.int64],
        *,
        folder: Path,
        views: int,
        view_of: ViewOf,
        device: torch.device,
        share: Share = (0, 1),
    ) -> None:
        self.encoder, self.collection, self.views, self.view_of = encoder, collection, views, view_of
        self.rows = np.asarray(rows)
        # `_entry` finds a row by bisection.
        assert (np.diff(self.rows) > 0).all(), "rows ascend"
        self.device, self.share = device, share
        # The precision "auto" may be another one on an accelerator.
        device_suffix = "" if device.type == "cpu" else f"-{device.type}"
        self.store = FeatureStore(
            folder,
            kind="images",
            depends=(
                encoder.fingerprint() + device_suffix,
                json.dumps(encoder.preprocess.to_dict(), sort_keys=True),
                f"decoding {DECODING_VERSION}",
            ),
            shape=tuple(encoder.feature_shape),
            dtype=encoder.feature_dtype,
        )
        self.bad: dict[int, str] = {}

    def fill(self) -> None:
        """Compute what does not exist yet."""
        sha256 = self.collection.index["sha256"]
        keys = keys_of(
            f"{sha256[row]} {self.view_of(row, view)!r}" for row in self.rows.tolist() for view in range(self.views)
        )
        description = f"image features, parts of {PART}"
        self.store.fill(keys, self._make, block=PART, description=description, share=self.share)
        self.bad = {int(self.rows[entry // self.views]): reason for entry, reason in self.store.bad.items()}

    def _make(self, entries: Sequence[int]) -> tuple[Tensor, NDArray[np.int32], dict[int, str]]:
        # Inference mode is each thread's own: what the caller's allocated in it, the other threads could not fill.
        with torch.inference_mode(False):
            features = torch.zeros((len(entries), *self.encoder.feature_shape), dtype=self.encoder.feature_dtype)
        # Stored with the features, so that boxes can be placed without decoding the image again.
        sizes = np.zeros((len(entries), 2), dtype=np.int32)
        reasons: dict[int, str] = {}

        def compute_batch(first: int) -> None:
            good, pixels = [], []
            for index in range(first, min(first + self._batch, len(entries))):
                rendered = self._render(entries[index])
                if isinstance(rendered, str):
                    reasons[entries[index]] = rendered
                else:
                    good.append(index)
                    pixels.append(rendered[0])
                    sizes[index] = rendered[1]
            if good:
                with torch.no_grad():
                    computed = self.encoder.frozen_features(torch.stack(pixels).to(self.device))
                features[good] = computed.to("cpu", features.dtype)

        map_on_cores(compute_batch, range(0, len(entries), self._batch), device=self.device)
        return features, sizes, reasons

    @property
    def _batch(self) -> int:
        """Batch size: few images for each core of a processor, many for an accelerator."""
        return _BATCH_OF_A_CORE if self.device.type == "cpu" else _BATCH

    def _render(self, entry: int) -> tuple[Tensor, tuple[int, int]] | str:
        row, view = int(self.rows[entry // self.views]), entry % self.views
        try:
            pixels, placement = read_image(self.collection, row, self.encoder.preprocess, self.view_of(row, view))
        except BadImage as problem:
            return str(problem)
        return pixels, (placement.width, placement.height)

    def _entry(self, row: int, view: int) -> int:
        return int(np.searchsorted(self.rows, row)) * self.views + view

    def features(self, row: int, view: int) -> Tensor:
        """Read the frozen features [*feature_shape] of a row's view."""
        return self.store[self._entry(row, view)]

    def placement(self, row: int, view: int) -> Placement:
        """Return the placement of the row's image in the model input in this view."""
        width, height = self.store.sizes[self._entry(row, view)].tolist()
        return place_image(self.encoder.preprocess, (width, height), self.view_of(row, view))
