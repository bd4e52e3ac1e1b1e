"""The frozen part of an image encoder, computed once per picture and view and kept on disk.

Parts of 256 entries are written atomically, so that a run that was stopped goes on with the next part. What the
features depend on (encoder, preprocessing, views, pictures) is in the folder's name: nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveate.pretrain.views import placed, read
from foveate.records.collection import Collection
from foveate.records.geometry import Placement, View
from foveate.records.pictures import BadPicture
from foveate.settings.files import write_bytes_atomically, write_json_atomically
from foveate.settings.progress import track
from foveate.vision.encoder import ImageEncoder

PART = 256
ViewOf = Callable[[int, int], View]


class FeatureCache:
    """Frozen features of `rows` x `views`.

    Args:
        view_of: (row, view number) -> the view; view number 0 .. views - 1. The views themselves are in the folder's
            name: whatever they depend on (seed, texts that forbid mirroring), boxes always move with the pixels.

    Attributes:
        bad: row -> reason, of pictures that could not be read.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        collection: Collection,
        rows: np.ndarray,
        *,
        folder: Path,
        views: int,
        view_of: ViewOf,
        device: torch.device,
        threads: int = 2,
    ) -> None:
        self.encoder, self.collection, self.views, self.view_of = encoder, collection, views, view_of
        self.rows = np.asarray(rows)
        self.device, self.threads = device, threads
        self.place_of = {int(row): place for place, row in enumerate(self.rows)}
        digest = hashlib.blake2b(digest_size=12)
        preprocess = json.dumps(encoder.preprocess.to_dict(), sort_keys=True)
        # The precision "auto" may be another one on an accelerator.
        made_on = "" if device.type == "cpu" else f"-{device.type}"
        for text in (encoder.fingerprint() + made_on, preprocess, str(views)):
            digest.update(text.encode("utf-8") + b"\0")
        for row in self.rows.tolist():
            seen = [collection.index["sha256"][row], *(view_of(row, view) for view in range(views))]
            digest.update(repr(seen).encode("utf-8"))
        self.folder = folder / f"features-{digest.hexdigest()}"
        self.bad: dict[int, str] = {}

    def fill(self) -> None:
        """Computes what is not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        total = len(self.rows) * self.views
        missing = [start for start in range(0, total, PART) if not self._sizes_path(start).is_file()]
        if missing:
            with ThreadPoolExecutor(self.threads) as pool:
                for start in track(missing, description=f"image features, parts of {PART}"):
                    self._make_part(start, min(start + PART, total), pool)
        self._open(total)

    def _features_path(self, start: int) -> Path:
        return self.folder / f"{start:09d}.features.npy"

    def _sizes_path(self, start: int) -> Path:
        return self.folder / f"{start:09d}.sizes.npy"

    def _make_part(self, start: int, stop: int, pool: ThreadPoolExecutor) -> None:
        shape = (stop - start, *self.encoder.feature_shape)
        features = torch.zeros(shape, dtype=self.encoder.feature_dtype)
        sizes = np.zeros((stop - start, 2), dtype=np.int32)
        reasons: dict[str, str] = {}
        batch = 64
        for first in range(start, stop, batch):
            entries = range(first, min(first + batch, stop))
            rendered = list(pool.map(self._render, entries))
            good, pixels = [], []
            for entry, one in zip(entries, rendered, strict=True):
                if isinstance(one, str):
                    reasons[str(int(self.rows[entry // self.views]))] = one
                else:
                    good.append(entry - start)
                    pixels.append(one[0])
                    sizes[entry - start] = one[1]
            if good:
                with torch.no_grad():
                    made = self.encoder.frozen_features(torch.stack(pixels).to(self.device))
                features[good] = made.to("cpu", features.dtype)
        for path, array in ((self._features_path(start), features.numpy()), (self._sizes_path(start), sizes)):
            if path == self._sizes_path(start) and reasons:
                write_json_atomically(self.folder / f"{start:09d}.bad.json", reasons)
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            write_bytes_atomically(path, buffer.getvalue())

    def _render(self, entry: int) -> tuple[Tensor, tuple[int, int]] | str:
        row, view = int(self.rows[entry // self.views]), entry % self.views
        try:
            pixels, placement = read(self.collection, row, self.encoder.preprocess, self.view_of(row, view))
        except BadPicture as problem:
            return str(problem)
        return pixels, (placement.width, placement.height)

    def _open(self, total: int) -> None:
        starts = range(0, total, PART)
        mapped = np.load(self._features_path(0), mmap_mode="r")
        self._header, self._shape, self._dtype = mapped.offset, mapped.shape[1:], mapped.dtype
        self._sizes = np.concatenate([np.load(self._sizes_path(start)) for start in starts])
        for path in self.folder.glob("*.bad.json"):
            reasons = json.loads(path.read_text(encoding="utf-8"))
            self.bad.update({int(row): reason for row, reason in reasons.items()})

    def features(self, row: int, view: int) -> Tensor:
        """Frozen features [*feature_shape] of a row's view."""
        entry = self.place_of[row] * self.views + view
        part, place = divmod(entry, PART)
        count = int(np.prod(self._shape))
        offset = self._header + place * count * self._dtype.itemsize
        # Read, not mapped: the pages of a mapping would count as this process's memory.
        read = np.fromfile(self._features_path(part * PART), self._dtype, count, offset=offset)
        return torch.from_numpy(read.reshape(self._shape))

    def placement(self, row: int, view: int) -> Placement:
        """How the row's picture lies in the model input in this view."""
        width, height = self._sizes[self.place_of[row] * self.views + view].tolist()
        return placed(self.encoder.preprocess, (width, height), self.view_of(row, view))
