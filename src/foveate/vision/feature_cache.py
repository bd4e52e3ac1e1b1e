"""Feature cache: the frozen part of an image encoder, computed once per image and view, on disk.

An entry's key is the hash of the image's bytes and its view, the folder's name is a hash of the encoder, its
preprocessing and how images are unpacked: a new image costs its own features only, and nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.progress import say, track
from foveate.records.collection import Collection
from foveate.records.geometry import Placement, View
from foveate.records.images import DECODING_VERSION, BadImage, decode
from foveate.vision.canvas import render_input
from foveate.vision.encoder import ImageEncoder, ImageFeatures
from foveate.vision.feature_store import Failure, FeatureStore, Share, keys_of
from foveate.vision.preprocess import place_image, read_image
from foveate.vision.tiling import OVERVIEW, TilePlan

# Parallel map: small frozen networks on the cores of a processor.


Item = TypeVar("Item")
Result = TypeVar("Result")
_THREADS = 4


def map_on_cores(function: Callable[[Item], Result], items: Iterable[Item], *, device: torch.device) -> list[Result]:
    """Apply a function to every item, in order, several at a time; on a processor each call gets one core.

    A small network that shares all cores within each of its layers waits for the slowest core after each of them: on a
    busy machine that takes several times as long. On an accelerator the threads get its next inputs ready.
    """
    if device.type != "cpu":
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            return list(pool.map(function, items))
    cores = torch.get_num_threads()
    if cores == 1:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        # The number is each thread's own, but threads that are yet to come take the one that was set last.
        torch.set_num_threads(cores)


CACHE = "cache"
PART = 256  # entries of a file: what a killed process has to compute again at most
_BATCH, _BATCH_OF_A_CORE = 64, 16
ViewOf = Callable[[int, int], View]
# Pixels of an entry and the width and height of its image, or why it has none.
Rendered = tuple[Tensor, tuple[int, int]] | Failure


def choose_cache_folder(collection: Collection, run_path: Path) -> Path:
    """Return the cache folder of the collection, which all runs share; the run's where it cannot be written."""
    if os.access(collection.path, os.W_OK):
        return collection.path / CACHE
    say(f"{collection.path} is read-only: frozen features are cached in {run_path / CACHE}")
    return run_path / CACHE


class FeatureCache:
    """Cached frozen features of `rows` x `views`.

    Args:
        rows: ascending.
        view_of: (row, view number) -> the view; view number 0 .. views - 1. The view itself is part of the key:
            whatever it depends on (seed, texts that forbid mirroring), boxes always move with the pixels.
        share: rank and number of the processes that fill the cache together.

    Attributes:
        bad: row -> reason, of images that could not be read; those whose file was missing are tried again next time.
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

    @classmethod
    def of_whole_images(
        cls,
        encoder: ImageEncoder,
        collection: Collection,
        rows: NDArray[np.int64],
        *,
        folder: Path,
        device: torch.device,
    ) -> FeatureCache:
        """Return the features of whole images, one view each; those that the folder lacks are computed.

        All models with the same frozen part share them, whatever the order of `rows`.
        """
        cache = cls(encoder, collection, np.sort(rows), folder=folder, views=1, view_of=_whole_view, device=device)
        cache.fill()
        return cache

    def fill(self, *, only: NDArray[np.int64] | None = None) -> None:
        """Compute what does not exist yet.

        Args:
            only: rows that are computed; of others that do not exist, features are zeros, in the place of the image.
        """
        sha256 = self.collection.index["sha256"]
        keys = keys_of(f"{sha256[row]} {text}" for row, text in self._list_entries())
        description = f"image features, parts of {PART}"
        fill = partial(self.store.fill, keys, self._make, block=PART, description=description, share=self.share)
        if only is None:
            fill()
        else:
            rows_N = np.array([self._row(entry) for entry in range(len(keys))], dtype=np.int64)
            fill(only=np.isin(rows_N, only))
            # A sample that takes the place of a damaged one may need them.
            index, unread_N = self.collection.index, self.store.sizes[:, 0] == 0
            self.store.sizes[unread_N] = np.stack([index["width"], index["height"]], axis=1)[rows_N[unread_N]]
        self.bad = {self._row(entry): reason for entry, reason in self.store.bad.items()}

    def _list_entries(self) -> Iterator[tuple[int, str]]:
        """List row and view of each entry, in order."""
        for row in self.rows.tolist():
            for view in range(self.views):
                # The key is the text of the view, with the names of its classes: renaming `View` or `Box` would
                # invalidate all caches.
                yield row, repr(self.view_of(row, view))

    def _row(self, entry: int) -> int:
        return int(self.rows[entry // self.views])

    def _make(self, entries: Sequence[int]) -> tuple[Tensor, NDArray[np.int32], dict[int, Failure]]:
        # Inference mode is each thread's own: what the caller's allocated in it, the other threads could not fill.
        with torch.inference_mode(False):
            features = torch.zeros((len(entries), *self.encoder.feature_shape), dtype=self.encoder.feature_dtype)
        # Stored with the features, so that boxes can be placed without decoding the image again.
        sizes = np.zeros((len(entries), 2), dtype=np.int32)
        failures: dict[int, Failure] = {}

        def compute_batch(first: int) -> None:
            good, pixels = [], []
            batch = self._render(entries[first : first + self._batch])
            for index, rendered in enumerate(batch, first):
                if isinstance(rendered, Failure):
                    failures[entries[index]] = rendered
                else:
                    good.append(index)
                    pixels.append(rendered[0])
                    sizes[index] = rendered[1]
            if good:
                is_overview_V = torch.tensor([self._is_overview(entries[index]) for index in good])
                with torch.no_grad():
                    computed = self.encoder.view_features(
                        torch.stack(pixels).to(self.device), is_overview_V.to(self.device)
                    )
                features[good] = computed.to("cpu", features.dtype)

        # Batches write disjoint entries, so the threads need no lock.
        map_on_cores(compute_batch, range(0, len(entries), self._batch), device=self.device)
        return features, sizes, failures

    @property
    def _batch(self) -> int:
        """Batch size: few images for each core of a processor, many for an accelerator."""
        return _BATCH_OF_A_CORE if self.device.type == "cpu" else _BATCH

    def _is_overview(self, entry: int) -> bool:
        return True

    def _render(self, entries: Sequence[int]) -> Iterator[Rendered]:
        for entry in entries:
            row, view = self._row(entry), entry % self.views
            try:
                pixels, placement = read_image(self.collection, row, self.encoder.preprocess, self.view_of(row, view))
            except BadImage as problem:
                yield Failure(str(problem), problem.is_passing)
            else:
                yield pixels, (placement.width, placement.height)

    def _entry(self, row: int, view: int) -> int:
        return int(np.searchsorted(self.rows, row)) * self.views + view

    def features(self, row: int, view: int) -> Tensor:
        """Read the frozen features [*feature_shape] of a row's view."""
        return self.store[self._entry(row, view)]

    def placement(self, row: int, view: int) -> Placement:
        """Return the placement of the row's image in the model input in this view."""
        width, height = self.store.sizes[self._entry(row, view)].tolist()
        return place_image(self.encoder.preprocess, (width, height), self.view_of(row, view))


def _whole_view(row: int, view: int) -> View:
    return View()


# Row numbers of the images of a batch that could be read, their placements, and pixels or features.
ImageBatch = tuple[list[int], list[Placement], Tensor]


def read_batches(
    encoder: ImageEncoder,
    collection: Collection,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    description: str,
    bad: dict[int, str],
    batch: int = 32,
    threads: int = 2,
) -> Iterator[ImageBatch]:
    """Yield uint8 pixels of whole images in batches; add the images that cannot be read to `bad`, with the reason."""

    # Returned instead of raised: an exception would end the iteration over `pool.map` at the first damaged image.
    def read_row(row: int) -> tuple[Tensor, Placement] | str:
        try:
            return read_image(collection, row, encoder.preprocess)
        except BadImage as problem:
            return str(problem)

    with ThreadPoolExecutor(threads) as pool:
        for start in track(range(0, len(rows), batch), description=description):
            batch_rows = [int(row) for row in rows[start : start + batch]]
            pairs = list(zip(batch_rows, pool.map(read_row, batch_rows), strict=True))
            bad.update({row: image for row, image in pairs if isinstance(image, str)})
            good = [(row, image) for row, image in pairs if not isinstance(image, str)]
            if good:
                pixels = torch.stack([image[0] for _, image in good]).to(device)
                yield [row for row, _ in good], [image[1] for _, image in good], pixels


def feature_batches(
    encoder: ImageEncoder,
    collection: Collection,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    description: str,
    bad: dict[int, str],
    cache: Path | None,
    batch: int = 32,
) -> Iterator[ImageBatch]:
    """Yield frozen features of whole images in batches, as `read_batches` yields pixels.

    Args:
        cache: folder of the features; None to compute them anew.
    """
    # Without a frozen part there are no features to cache.
    if cache is None or not encoder.fingerprint():
        batches = read_batches(encoder, collection, rows, device=device, description=description, bad=bad, batch=batch)
        for batch_rows, placements, pixels in batches:
            yield batch_rows, placements, encoder.frozen_features(pixels)
        return
    stored = FeatureCache.of_whole_images(encoder, collection, rows, folder=cache, device=device)
    bad.update({row: stored.bad[row] for row in rows.tolist() if row in stored.bad})
    good = [row for row in rows.tolist() if row not in stored.bad]
    for start in range(0, len(good), batch):
        batch_rows = good[start : start + batch]
        features = torch.stack([stored.features(row, 0) for row in batch_rows])
        yield batch_rows, [stored.placement(row, 0) for row in batch_rows], features.to(device)


class TileCache(FeatureCache):
    """Cached frozen features of tiles and overviews.

    An entry's key holds where the image lies in its canvas, not the options that led there: what two rules of tiling
    have in common, such as the overview, is computed once.

    Args:
        rows: ascending.
        plans: of each row, the plans by which its image is cut: another one where it stands among many images.
        share: see `FeatureCache`.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        collection: Collection,
        rows: NDArray[np.int64],
        *,
        folder: Path,
        plans: Sequence[Sequence[TilePlan]],
        device: torch.device,
        share: Share = (0, 1),
    ) -> None:
        super().__init__(
            encoder,
            collection,
            rows,
            folder=folder,
            views=1,
            view_of=lambda row, view: View(),
            device=device,
            share=share,
        )
        self.plans = dict(zip(self.rows.tolist(), plans, strict=True))
        # The number of views varies with each image's plans; the running sum maps between entries and images.
        counts = [sum(len(plan.views) for plan in of_row) for of_row in plans]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._overviews = [view == OVERVIEW for of_row in plans for plan in of_row for view in plan.views]

    def _list_entries(self) -> Iterator[tuple[int, str]]:
        for row, plans in self.plans.items():
            for plan in plans:
                for view in plan.views:
                    fit, of = (plan.overview, "overview") if view == OVERVIEW else (plan.tiles, f"{plan.grid} {view}")
                    # Named only where it is not the mean, so that caches of before the setting stay valid.
                    color = "" if plan.padding_color == "mean" else f" {plan.padding_color}"
                    # As for `View`: the names of `Fit`, `Grid`, `ImageSize` and `Padding` are part of the text.
                    yield row, f"{tuple(plan.size)} {fit!r} {of}{color}"

    def _row(self, entry: int) -> int:
        return int(self.rows[np.searchsorted(self._starts, entry, side="right") - 1])

    def _is_overview(self, entry: int) -> bool:
        return self._overviews[entry]

    def _render(self, entries: Sequence[int]) -> Iterator[Rendered]:
        rendered: dict[int, Rendered] = {}
        for entry in entries:
            if entry not in rendered:
                # The views of an image together: it is decoded and resized once.
                rendered = self._render_row(self._row(entry))
            yield rendered[entry]

    def _render_row(self, row: int) -> dict[int, Rendered]:
        plans = self.plans[row]
        first = int(self._starts[np.searchsorted(self.rows, row)])
        try:
            image = decode(self.collection.image_bytes(row))
            # A file of another size than its entry in the index fits no plan; `render_input` says so.
            views = torch.cat([render_input(self.encoder.preprocess, image, plan) for plan in plans])
        except UserError as problem:
            count = sum(len(plan.views) for plan in plans)
            failure = Failure(str(problem), isinstance(problem, BadImage) and problem.is_passing)
            return {first + number: failure for number in range(count)}
        return {first + number: (view, image.size) for number, view in enumerate(views)}

    def plan_features(self, row: int, plan: TilePlan) -> Tensor:
        """Read the frozen features [views, *feature_shape] of a row's image cut by one of its plans."""
        start = int(self._starts[np.searchsorted(self.rows, row)])
        for other in self.plans[row]:
            if other == plan:
                return torch.stack([self.store[start + number] for number in range(len(plan.views))])
            start += len(other.views)
        raise AssertionError(f"row {row} has no such plan")


# One vector an image of an encoder that is not trained: cached, it takes kilobytes where tokens take megabytes.


class VectorEncoder(ImageEncoder):
    """An encoder as it is, whose features are its `image_vectors`; see `foveate.vision.feature_cache.FeatureCache`."""

    def __init__(self, encoder: ImageEncoder) -> None:
        width = encoder.vector_width
        super().__init__(width=width, embed_dim=width, grid=(1, 1), preprocess=encoder.preprocess)
        self.inner = encoder.eval().requires_grad_(False)
        self.feature_shape = (width,)
        # 32 bits: the vector is the only input of a classifier, and its size does not matter.
        self.feature_dtype = torch.float32
        self._digest = ""

    def train(self, mode: bool = True) -> VectorEncoder:
        """Stay in evaluation mode: batch statistics would make each cached vector another one."""
        return super().train(False)  # type: ignore[return-value]

    def fingerprint(self) -> str:
        """Name the encoder with all weights that its vectors depend on, and that vectors are cached."""
        frozen = self.inner.fingerprint()
        if not frozen:
            architecture = f"{type(self.inner).__name__} {self.inner.architecture()}"
            return f"{self._hash(architecture, self.inner.state_dict())}-{self.preprocess.size_name}-vectors"
        unnamed = self.inner.unnamed_weights()
        return f"{frozen}-{self._hash('', unnamed)}-vectors" if unnamed else f"{frozen}-vectors"

    def _hash(self, text: str, weights: Mapping[str, Tensor]) -> str:
        if not self._digest:
            digest = hashlib.sha256(text.encode())
            for name, value in weights.items():
                digest.update(name.encode() + b"\0")
                # As bytes, because NumPy has no bfloat16.
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._digest = digest.hexdigest()[:16]
        return self._digest

    @torch.no_grad()
    def frozen_features(self, pixels_B3HW: Tensor) -> Tensor:
        """Return vectors [B, D] of pixels."""
        return self.inner.image_vectors(self.inner.frozen_features(pixels_B3HW)).float()

    def forward(self, features: Tensor) -> ImageFeatures:
        """Return vectors of pixels, or vectors themselves, as one token each."""
        vectors_BD = features if features.dim() == 2 else self.frozen_features(features)
        return ImageFeatures(vectors_BD[:, None], (1, 1), vectors_BD)

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Return the vectors: there is no other space."""
        return pooled_RD
