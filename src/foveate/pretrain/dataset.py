"""What one visit to a picture gives: a view, one drawn text, and at most M drawn regions with their phrases.

Every draw is a pure function of (seed, visit, key), so that workers and resumed runs agree.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from foveate.pretrain.recipe import DataSettings
from foveate.pretrain.texts import LiveTexts, StoredTexts, TextFeatures, text_id
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.geometry import Placement, View
from foveate.records.pictures import BadPicture
from foveate.settings import seeds
from foveate.settings.errors import UserError
from foveate.training.augment import RandomViews
from foveate.training.loader import BadSample
from foveate.training.mixture import MixtureSampler
from foveate.vision.encoder import ImageEncoder, TextEncoder
from foveate.vision.features import FeatureCache
from foveate.vision.store import Share
from foveate.vision.views import input_boxes, read


def draw_regions(count: int, most: int, *, seed: int, visit: int, key: str) -> np.ndarray:
    """Which of `count` regions this visit sees: all, or `most` of them uniformly without replacement, ascending."""
    if count <= most:
        return np.arange(count)
    drawn = seeds.generator("regions", seed, visit, key).choice(count, size=most, replace=False)
    return np.sort(drawn)


_NO_BOXES = np.zeros((0, 4), np.float32)
# A few ten megabytes at most, however large the collection is.
_KEPT_ROWS = 16_384
_ROWS_AT_A_TIME = 65_536


@dataclass(frozen=True, slots=True)
class RowTexts:
    """What a collection says of one row: texts by kind, boxes of the original picture, their phrases."""

    captions: dict[str, tuple[str, ...]]
    boxes_R4: np.ndarray
    phrases: tuple[str, ...]

    def all(self) -> list[str]:
        """Every text: a mirrored picture must contradict none of them."""
        return [text for texts in self.captions.values() for text in texts] + list(self.phrases)


class PretrainDataset:
    """The training samples of a collection for the encoders of a model.

    Args:
        cache: folder for the features of encoders with a frozen part.
        share: rank and number of the processes that compute these features together.

    Raises:
        UserError: when no picture of the split has a text of the wanted kinds.
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
    ) -> None:
        self.collection, self.settings, self.image_encoder = collection, settings, image_encoder
        self.with_regions = with_regions
        self.mixture = MixtureSampler(settings.captions, sources=tuple(settings.captions), missing=settings.missing)
        self.kinds = [kind for kind, weight in settings.captions.items() if weight > 0]
        self.has_random_views = settings.views.scale != (1.0, 1.0) or settings.views.flip > 0
        self.random_views = RandomViews(scale=settings.views.scale, flip=settings.views.flip)
        self._row = functools.lru_cache(maxsize=_KEPT_ROWS)(self._read_row)
        self.rows, self.skipped = self._rows_with_text(collection.rows(settings.split))
        self._texts: TextFeatures = LiveTexts(text_encoder)
        if text_encoder.fingerprint():
            self._texts = StoredTexts(text_encoder, self._all_texts(), cache=cache, share=share)
        self._cache: FeatureCache | None = None
        if image_encoder.fingerprint():
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
        captions, by_kind = self.collection.grouped("captions"), dict[str, tuple[str, ...]]()
        bounds = captions.bounds(row)
        for kind, text in zip(captions.texts("kind", *bounds), captions.texts("text", *bounds), strict=True):
            if kind in self.kinds and text.strip():
                by_kind[kind] = (*by_kind.get(kind, ()), text)
        if not self.with_regions:
            return RowTexts(by_kind, _NO_BOXES, ())
        regions = self.collection.grouped("regions")
        start, end = regions.bounds(row)
        boxes_R4 = self.collection.region_boxes[start:end].astype(np.float64)
        return RowTexts(by_kind, boxes_R4, tuple(regions.texts("phrase", start, end)))

    def _usable_captions(self) -> NDArray[np.bool_]:
        """Which rows of the grouped table of captions have a text of a wanted kind."""
        table = self.collection.grouped("captions").table
        usable = np.zeros(table.num_rows, dtype=bool)
        wanted = pc.SetLookupOptions(value_set=pa.array(self.kinds, pa.string()))
        for start in range(0, table.num_rows, _ROWS_AT_A_TIME):
            part = table.slice(start, _ROWS_AT_A_TIME)
            trimmed = pc.call_function("utf8_trim_whitespace", [part["text"]])
            said = pc.call_function("utf8_length", [trimmed]).to_numpy() > 0
            usable[start : start + part.num_rows] = pc.call_function("is_in", [part["kind"]], wanted).to_numpy() & said
        return usable

    def _rows_with_text(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        has_text = np.zeros(len(self.collection), dtype=bool)
        has_text[self.collection.grouped("captions").row_numbers[self._usable_captions()]] = True
        kept = rows[has_text[rows]].astype(np.int64)
        if not len(kept):
            raise UserError(
                f"collection {self.collection.path}: no picture of split '{self.settings.split}' has a text of the "
                f"kinds {', '.join(self.kinds)} (field data.captions)"
            )
        return kept, len(rows) - len(kept)

    def _all_texts(self) -> pa.ChunkedArray:
        """Every text that a sample may have."""
        chosen = np.zeros(len(self.collection), dtype=bool)
        chosen[self.rows] = True
        captions = self.collection.grouped("captions")
        usable = self._usable_captions() & chosen[captions.row_numbers]
        texts = pa.chunked_array(captions.table["text"].filter(pa.array(usable)))
        if not self.with_regions:
            return texts
        regions = self.collection.grouped("regions")
        phrases = regions.table["phrase"].filter(pa.array(chosen[regions.row_numbers]))
        return pa.chunked_array([*texts.chunks, *pa.chunked_array(phrases).chunks], pa.string())

    def _view(self, row: int, view: int, seed: int) -> View:
        width, height = (int(self.collection.index[name][row]) for name in ("width", "height"))
        key = self.collection.keys[row]
        return self.random_views.draw(
            width=width, height=height, seed=seed, visit=view, key=key, texts=self._row(row).all()
        )

    def sample(self, row: int, visit: int, seed: int) -> dict[str, Any]:
        """One visit; see `foveate.training.loader.Dataset`."""
        key = self.collection.keys[row]
        image, placement = self._image(row, visit, seed, key)
        captions = self._row(row).captions
        kind = self.mixture.draw(list(captions), seed=seed, visit=visit, key=key)
        if kind is None:
            raise BadSample(key, "has no text of a wanted kind")
        choices = captions[kind]
        text = choices[int(seeds.uniform("text", seed, visit, key) * len(choices))]
        boxes_R4, phrases, lost = self._regions(row, visit, seed, key, placement, text)
        return {"key": key, "image": image, "text": text, "boxes": boxes_R4, "phrases": phrases, "lost": lost}

    def _image(self, row: int, visit: int, seed: int, key: str) -> tuple[torch.Tensor, Placement]:
        if self._cache is not None:
            if row in self._cache.bad:
                raise BadSample(key, self._cache.bad[row])
            view = visit % self._cache.views
            return self._cache.features(row, view), self._cache.placement(row, view)
        try:
            return read(self.collection, row, self.image_encoder.preprocess, self._view(row, visit, seed))
        except BadPicture as problem:
            raise BadSample(key, str(problem)) from problem

    def _regions(
        self, row: int, visit: int, seed: int, key: str, placement: Placement, text: str
    ) -> tuple[np.ndarray, list[str], int]:
        """Boxes in the model input, their phrases, and how many regions the view shows nothing (or little) of."""
        said = self._row(row)
        boxes_R4, phrases = said.boxes_R4, said.phrases
        if not len(phrases) and self.with_regions and self.settings.whole_picture_region:
            boxes_R4, phrases = Box.whole().to_array()[None], (text,)
        if not len(phrases):
            return _NO_BOXES, [], 0
        moved_K4, kept_R = input_boxes(placement, boxes_R4)
        kept = np.flatnonzero(kept_R)
        drawn = draw_regions(len(kept), self.settings.regions_per_picture, seed=seed, visit=visit, key=key)
        return moved_K4[drawn], [phrases[kept[index]] for index in drawn], len(phrases) - len(kept)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Images and texts stacked; regions flat, with the row of the picture that each belongs to."""
        counts = [len(sample["phrases"]) for sample in samples]
        phrases = [phrase for sample in samples for phrase in sample["phrases"]]
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "text": self._texts[[sample["text"] for sample in samples]],
            "boxes_R4": torch.from_numpy(np.concatenate([sample["boxes"] for sample in samples])),
            "region_text": self._texts[phrases],
            "phrase_ids_R": torch.tensor([text_id(phrase) for phrase in phrases], dtype=torch.int64),
            "image_index_R": torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
            "counts_B": torch.tensor(counts),
            "lost_B": torch.tensor([sample["lost"] for sample in samples]),
        }
