"""Training samples: per epoch a view of the image, one drawn text, and at most M drawn regions with their phrases.

Every draw is a pure function of (seed, epoch, key), so that workers and resumed runs agree.

Texts become features: of a frozen encoder each distinct text once and on disk, otherwise token ids on demand. Neither
holds the texts of a collection in memory: they stay in its table.
"""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.metrics.captions import normalize_counts
from foveate.pretrain.recipe import DataSettings
from foveate.pretrain.results import DrawnTexts
from foveate.records.boxes import Box
from foveate.records.caption_formats import LONG_FORMATS
from foveate.records.collection import Collection
from foveate.records.geometry import Placement, View
from foveate.records.images import BadImage
from foveate.records.region_sources import select_region_rows
from foveate.training.augment import RandomViews
from foveate.training.image_texts import ImageTexts
from foveate.training.loader import BadSample, Loader, MixtureLoader
from foveate.training.order import epoch_rows
from foveate.vision.encoder import ImageEncoder, TextEncoder
from foveate.vision.feature_cache import FeatureCache
from foveate.vision.feature_store import Failure, FeatureStore, Share, keys_of
from foveate.vision.localizer.inference import encode_all
from foveate.vision.preprocess import move_boxes, read_image

_BLOCK = 2048
_CACHED_TEXTS = 16_384
_SMALL_BYTES = 2**28


def text_id(text: str) -> int:
    """Hash a text to an integer in [0, 2**63), the same on every machine."""
    # 63 bits: an int64 tensor has no unsigned twin on every device. Python's own hash differs between processes.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big") >> 1


class TextFeatures(Protocol):
    """Frozen text features, looked up by text."""

    def __getitem__(self, texts: Sequence[str]) -> Tensor:
        """Return the features [B, *feature_shape] of texts."""
        ...


class LiveTexts:
    """Token ids on demand, for encoders that train; memory does not grow with the collection.

    Recent texts are cached, since the phrases of regions repeat often.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._cache: dict[str, Tensor] = {}

    def __getitem__(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B, *feature_shape]; may be called from several threads."""
        # A local reference: another thread may replace the cache while this one reads it.
        cache = self._cache
        by_text = {text: cache.get(text) for text in texts}
        new = [text for text, features in by_text.items() if features is None]
        if len(cache) + len(new) > _CACHED_TEXTS:
            cache = self._cache = {}
        if new:
            encoded = dict(zip(new, self.encoder.frozen_features(new), strict=True))
            by_text |= encoded
            cache.update(encoded)
        if not texts:
            return torch.zeros(0, *self.encoder.feature_shape, dtype=self.encoder.feature_dtype)
        return torch.stack([features for features in map(by_text.get, texts) if features is not None])


class StoredTexts:
    """The features of a frozen encoder, each distinct text once, cached on disk for other runs.

    Args:
        texts: all that will be looked up, in any order, repeated or not.
        cache: folder of the stores. share: rank and number of the processes that fill it together.
    """

    def __init__(
        self, encoder: TextEncoder, texts: pa.ChunkedArray | pa.Array, *, cache: Path, share: Share = (0, 1)
    ) -> None:
        distinct = texts.unique()
        # Sort by length to pad the texts of a block little, then by text: all ranks need the same order.
        by_length = pa.table({"length": pc.call_function("utf8_length", [distinct]), "text": distinct})
        distinct = by_length.sort_by([("length", "ascending"), ("text", "ascending")])["text"]
        keys = keys_of(_iterate(distinct))
        self.store = FeatureStore(
            cache,
            kind="texts",
            depends=(encoder.fingerprint(),),
            shape=tuple(encoder.feature_shape),
            dtype=encoder.feature_dtype,
        )

        def make(entries: Sequence[int]) -> tuple[Tensor, NDArray[np.int32], dict[int, Failure]]:
            block = distinct.take(pa.array(entries)).to_pylist()
            return encode_all(encoder, block), np.zeros((len(entries), 2), np.int32), {}

        self.store.fill(keys, make, block=_BLOCK, description=f"text features, parts of {_BLOCK}", share=share)
        # Looked up by binary search on the first 8 bytes of each hash: a dictionary would hold every text in memory.
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._hashes = keys[self._order, 0]
        # Small stores fit into memory, where a lookup needs no page of the file.
        if len(keys) * int(np.prod(encoder.feature_shape)) * encoder.feature_dtype.itemsize <= _SMALL_BYTES:
            self.store.keep_in_memory()

    def __getitem__(self, texts: Sequence[str]) -> Tensor:
        """Return the features [B, *feature_shape] of texts that the constructor was given."""
        if not texts:
            return torch.zeros(0, *self.store.shape, dtype=self.store.dtype)
        hashes = keys_of(texts)
        # A hash above the last one would be out of bounds; the assertion then reports it like any other unknown text.
        entries = self._order[np.searchsorted(self._hashes, hashes[:, 0]).clip(max=len(self._hashes) - 1)]
        assert (self.store.keys[entries] == hashes).all(), "a text that the constructor was not given"
        return torch.stack([self.store[int(entry)] for entry in entries])


def _iterate(texts: pa.ChunkedArray) -> Iterable[str]:
    """Yield the texts of a column without a Python list of all of them."""
    for start in range(0, len(texts), 65_536):
        yield from texts.slice(start, 65_536).to_pylist()


def describe_no_regions(collection: Path, split: str) -> str:
    """Describe what a training without regions omits, and the command that makes regions."""
    return (
        f"no image of split '{split}' has a region, so no place will be learned: locate and search by box would only "
        f"guess; `foveate regions {shlex.quote(str(collection))}` makes regions from the captions"
    )


def draw_regions(count: int, max_regions: int, *, seed: int, epoch: int, key: str) -> np.ndarray:
    """Draw at most `max_regions` of `count` regions without replacement; return their indices, ascending."""
    if count <= max_regions:
        return np.arange(count)
    # A generator per image and epoch: the draw does not depend on workers, batch order or earlier draws.
    drawn = seeds.generator("regions", seed, epoch, key).choice(count, size=max_regions, replace=False)
    return np.sort(drawn)


MAX_COUNTED = 200_000
SHORT_WINDOW = 77  # tokens of CLIP's text tower, special ones included
_NO_BOXES = np.zeros((0, 4), np.float32)
# Tens of megabytes at most, however large the collection is.
_CACHED_ROWS = 16_384
_HASHED_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class RowTexts:
    """The texts of one image by kind, and the boxes of its regions in the original image with their phrases."""

    captions: dict[str, tuple[str, ...]]
    boxes_R4: np.ndarray
    phrases: tuple[str, ...]

    def all(self) -> list[str]:
        """Return every text: a mirrored image must contradict none of them."""
        # Return more than the drawn text: whether a view may be mirrored must not depend on the epoch, or a cached view
        # of one epoch would contradict the text of another.
        return [text for texts in self.captions.values() for text in texts] + list(self.phrases)


def check_window(settings: DataSettings, text_encoder: TextEncoder) -> None:
    """Refuse dense captions for a text tower that reads only their beginning.

    Raises:
        UserError: a format of `LONG_FORMATS` may be drawn, the tower reads at most 77 tokens, and this is not allowed.
    """
    window = text_encoder.context_length
    long = next((kind for kind in settings.text_rule().drawable if kind in LONG_FORMATS), None)
    if long is not None and window is not None and window <= SHORT_WINDOW:
        if not settings.allow_truncation:
            raise UserError(
                f"field data: {long} captions are longer than the context of the text tower ({window} tokens); leave "
                "them out, or set data.allow_truncation=true"
            )


class PretrainDataset:
    """The training samples of a collection for the encoders of a model.

    Args:
        cache: folder for the features of encoders with a frozen part.
        share: rank and number of the processes that compute these features together.
        mixed_with: datasets of other collections whose samples this one collates, too; they cannot collate.
        collates: False for these other datasets: their texts are encoded only once, by the one that collates.

    Raises:
        UserError: when no image of the split has a text of the kinds that are drawn.
    """

    def __init__(
        self,
        collection: Collection,
        settings: DataSettings,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        *,
        seed: int,
        cache: Path,
        device: torch.device,
        with_regions: bool,
        share: Share = (0, 1),
        mixed_with: Sequence[PretrainDataset] = (),
        collates: bool = True,
    ) -> None:
        self.collection, self.settings, self.image_encoder = collection, settings, image_encoder
        self.with_regions = with_regions
        self.rule = settings.text_rule()
        self.image_texts = ImageTexts(collection, self.rule, prefer=settings.prefer)
        self.kinds = self.rule.kinds
        # Fail early: the caches below may take hours to fill.
        check_window(settings, text_encoder)
        self.has_random_views = settings.views.scale != (1.0, 1.0) or settings.views.flip > 0
        self.random_views = RandomViews(scale=settings.views.scale, flip=settings.views.flip)
        self._usable_R = self._usable_regions()
        # Captions and regions are read from tables per image; every epoch asks for the same rows several times.
        self._row = functools.lru_cache(maxsize=_CACHED_ROWS)(self._read_row)
        self.rows, self.skipped = self._rows_with_text(collection.rows(settings.split))
        self._texts: TextFeatures = LiveTexts(text_encoder)
        # A frozen tower needs each text once; the store is keyed by text, so runs and recipes share it.
        if text_encoder.fingerprint() and collates:
            chunks = [chunk for dataset in (self, *mixed_with) for chunk in dataset._all_texts().chunks]
            texts = pa.chunked_array(chunks, pa.string())
            self._texts = StoredTexts(text_encoder, texts, cache=cache, share=share)
        self._cache: FeatureCache | None = None
        if image_encoder.fingerprint():
            # Random crops of a frozen tower cannot be drawn per epoch: a few views per image are cached and repeat.
            views = settings.views.cached if self.has_random_views else 1
            self._cache = FeatureCache(
                image_encoder,
                collection,
                self.rows,
                folder=cache,
                views=views,
                view_of=lambda row, view: self._view(row, view, seed),
                device=device,
                share=share,
            )
            self._cache.fill()

    def _read_row(self, row: int) -> RowTexts:
        by_kind = self.image_texts.read_row(row)
        if not self.with_regions:
            return RowTexts(by_kind, _NO_BOXES, ())
        regions = self.collection.grouped("regions")
        start, end = regions.bounds(row)
        boxes_R4 = self.collection.region_boxes[start:end].astype(np.float64)
        phrases = regions.texts("phrase", start, end)
        if self._usable_R is None:
            return RowTexts(by_kind, boxes_R4, tuple(phrases))
        used = self._usable_R[start:end]
        return RowTexts(by_kind, boxes_R4[used], tuple(phrases[index] for index in np.flatnonzero(used)))

    def _usable_regions(self) -> NDArray[np.bool_] | None:
        """Mark the rows of the grouped table of regions that may be drawn; None for all."""
        if self.settings.region_sources is None or not self.with_regions:
            return None
        table = self.collection.grouped("regions").table
        return select_region_rows(table, self.settings.region_sources, where="field data.region_sources")

    def _rows_with_text(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        with_text = self.image_texts.rows_with_text(rows)
        if not len(with_text):
            field = "captions" if self.settings.mixture is None else "mixture"
            raise UserError(
                f"collection {self.collection.path}: no image of split '{self.settings.split}' has a text of the "
                f"kinds {', '.join(self.kinds)} (field data.{field})"
            )
        return with_text, len(rows) - len(with_text)

    def _all_texts(self) -> pa.ChunkedArray:
        """Return every text that a sample may have."""
        texts = self.image_texts.list_possible(self.rows)
        if not self.with_regions:
            return texts
        regions = self.collection.grouped("regions").table
        phrases = regions["phrase"].filter(pa.array(self._drawn_regions()))
        return pa.chunked_array([*texts.chunks, *pa.chunked_array(phrases).chunks], pa.string())

    def _drawn_regions(self) -> NDArray[np.bool_]:
        """Mark the rows of the grouped table of regions that training draws from."""
        # A mask over row numbers: no join of all phrases with keys.
        in_split = np.zeros(len(self.collection), dtype=bool)
        in_split[self.rows] = True
        usable_R = in_split[self.collection.grouped("regions").row_numbers]
        return usable_R if self._usable_R is None else usable_R & self._usable_R

    @property
    def num_regions(self) -> int:
        """Number of regions that training draws from; 0 for a model without a region module."""
        return int(self._drawn_regions().sum()) if self.with_regions else 0

    def hash_content(self) -> str:
        """Hash the images, texts and regions that samples are drawn from.

        Nothing else counts: other splits, captions of other kinds, regions of other sources.
        """
        digest = hashlib.blake2b(digest_size=16)
        index, captions = self.collection.index, self.collection.grouped("captions")
        drawn_C = self.image_texts.mask_captions(self.rows)
        # Row numbers say whose a text or box is; the order within an image is that of writing, and draws depend on it.
        arrays = [captions.row_numbers[drawn_C]]
        columns: list[Any] = [index["key"][self.rows], index["sha256"][self.rows]]
        columns += [captions.table[name].filter(pa.array(drawn_C)) for name in ("kind", "text")]
        if self.with_regions:
            regions, drawn_R = self.collection.grouped("regions"), self._drawn_regions()
            arrays += [regions.row_numbers[drawn_R], self.collection.region_boxes[drawn_R]]
            columns.append(regions.table["phrase"].filter(pa.array(drawn_R)))
        for array in arrays:
            # The shape separates the arrays, whose bytes would otherwise run into one another.
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        for column in columns:
            # Hash in parts: millions of captions as Python's texts would fill the memory.
            for start in range(0, len(column), _HASHED_AT_ONCE):
                part = np.asarray(column[start : start + _HASHED_AT_ONCE])
                # Join with a separator: "ab", "c" and "a", "bc" must not have one hash.
                digest.update("\0".join([*part.tolist(), ""]).encode("utf-8"))
        return digest.hexdigest()

    def _view(self, row: int, view: int, seed: int) -> View:
        width, height = (int(self.collection.index[name][row]) for name in ("width", "height"))
        key = self.collection.keys[row]
        return self.random_views.draw(
            width=width, height=height, seed=seed, epoch=view, key=key, texts=self._row(row).all()
        )

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """Draw the sample of an image in one epoch; see `foveate.training.loader.Dataset`."""
        key = self.collection.keys[row]
        image, placement = self._image(row, epoch, seed, key)
        drawn = self.rule.draw(self._row(row).captions, seed=seed, epoch=epoch, key=key)
        # With data.missing=skip an image is left out of the epochs that draw a kind of text it lacks.
        if drawn is None:
            raise BadSample(key, "has no text of a kind that is drawn")
        kind, text = drawn
        boxes_R4, phrases, lost = self._regions(row, epoch, seed, key, placement, text)
        sample = {"key": key, "image": image, "kind": kind, "text": text}
        return {**sample, "boxes": boxes_R4, "phrases": phrases, "lost": lost}

    def _image(self, row: int, epoch: int, seed: int, key: str) -> tuple[torch.Tensor, Placement]:
        if self._cache is not None:
            if row in self._cache.bad:
                raise BadSample(key, self._cache.bad[row])
            # Epochs cycle through the cached views, so that each is used equally often.
            view = epoch % self._cache.views
            return self._cache.features(row, view), self._cache.placement(row, view)
        try:
            return read_image(self.collection, row, self.image_encoder.preprocess, self._view(row, epoch, seed))
        except BadImage as problem:
            raise BadSample(key, str(problem)) from problem

    def _regions(
        self, row: int, epoch: int, seed: int, key: str, placement: Placement, text: str
    ) -> tuple[np.ndarray, list[str], int]:
        """Draw boxes in the model input and their phrases; count the regions that the view shows too little of."""
        texts = self._row(row)
        boxes_R4, phrases = texts.boxes_R4, texts.phrases
        # The whole image as a region keeps unlabeled images in the region loss, as an ablation of lambda.
        if not len(phrases) and self.with_regions and self.settings.whole_image_region:
            boxes_R4, phrases = Box.whole().to_array()[None], (text,)
        if not len(phrases):
            return _NO_BOXES, [], 0
        moved_K4, visible_R = move_boxes(placement, boxes_R4)
        visible = np.flatnonzero(visible_R)
        # Drawn among the visible regions, so that a crop never costs a sample its regions while some are in view.
        drawn = draw_regions(len(visible), self.settings.regions_per_image, seed=seed, epoch=epoch, key=key)
        return moved_K4[drawn], [phrases[visible[index]] for index in drawn], len(phrases) - len(visible)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack images and texts; concatenate regions, each with the row of its image."""
        counts = [len(sample["phrases"]) for sample in samples]
        phrases = [phrase for sample in samples for phrase in sample["phrases"]]
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "kinds": [sample["kind"] for sample in samples],
            "text": self._texts[[sample["text"] for sample in samples]],
            "boxes_R4": torch.from_numpy(np.concatenate([sample["boxes"] for sample in samples])),
            "region_text": self._texts[phrases],
            # Hashes instead of indices: the filter "exact" compares phrases of different processes.
            "phrase_ids_R": torch.tensor([text_id(phrase) for phrase in phrases], dtype=torch.int64),
            "image_index_R": torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
            "counts_B": torch.tensor(counts),
            # Logged: many lost regions mean that crops are too small for the boxes.
            "lost_B": torch.tensor([sample["lost"] for sample in samples]),
        }


def count_texts(datasets: Sequence[PretrainDataset], loader: Loader, *, steps: int, seed: int) -> DrawnTexts:
    """Count how often each kind of text was drawn in the first epoch, or in the part of it that was trained on.

    Draws are pure functions of (seed, epoch, key), so they are drawn again here: the result does not depend on stops,
    and `foveate mix` counts the same. At most 200,000 samples are counted.

    Args:
        datasets: in the order of the sources of `loader`, a single one or a mixture.
    """
    samples = min(steps * loader.batch_size, MAX_COUNTED)
    if isinstance(loader, MixtureLoader):
        batches = range(-(-samples // loader.batch_size))
        draws = [loader.order.batch(step, batch_size=loader.batch_size) for step in batches]
        draws_S3 = np.concatenate([np.zeros((0, 3), np.int64), *draws])[:samples]
        # Columns are source, row and epoch; small sources with large weights reach their second epoch early, which
        # would count their rows twice.
        first_S3 = draws_S3[draws_S3[:, 2] == 0]
        rows = [first_S3[first_S3[:, 0] == source, 1] for source in range(len(datasets))]
    else:
        rows = [epoch_rows(datasets[0].rows, seed=seed, epoch=0)[:samples]]
    drawn: Counter[str] = Counter()
    for dataset, of_source in zip(datasets, rows, strict=True):
        drawn.update(dataset.image_texts.count_drawn(of_source.tolist(), seed=seed))
    without_text = drawn.pop("", 0)
    images = sum(map(len, rows))
    return DrawnTexts(images=images, drawn=dict(drawn), shares=normalize_counts(drawn), without_text=without_text)
