"""Image-text models: embeddings of texts, images and boxes, and the boxes of phrases."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from foveate.records.boxes import Box
from foveate.search.api import Model, open_model
from foveate.search.calibration import TextCache
from foveate.search.locate import find_decode_side, locate_phrases
from foveate.search.search import Verdict
from foveate.serve.adapters import check_letters, count_bytes, read_folder_config, use_precision
from foveate.serve.calls import Call, EmbeddingsCall, EmbeddingsReply, Endpoint, LocateCall, Located, SearchCall
from foveate.vision.hf.towers import KIND_OF_TYPE
from foveate.vision.localizer.folder import KIND
from foveate.vision.localizer.sources import OPEN_CLIP_CONFIG


class LocalizerAdapter:
    """See `foveate.serve.calls.Adapter`."""

    kind = "localizer"
    endpoints: frozenset[Endpoint] = frozenset({"embeddings", "locate"})

    def __init__(self, model: Model, *, name: str, precision: str = "auto") -> None:
        self.model, self.name, self.precision = model, name, precision
        self.num_bytes, self.decode_side = count_bytes(model.network), find_decode_side(model.network)
        # The random names of a floor are the same for every image.
        self._texts = TextCache()

    def check(self, call: Call) -> None:
        """Raise `Refused` for a text of too many letters."""
        if isinstance(call, EmbeddingsCall):
            # One by one: of many texts no word is embedded by itself.
            check_letters([max(call.texts, key=len, default="")], param="input")
        elif isinstance(call, LocateCall):
            check_letters(call.phrases, param="phrases")
        elif isinstance(call, SearchCall):
            texts = {"text": call.text or "", "negative": call.negative or ""}
            check_letters(texts.values(), param=max(texts, key=lambda name: len(texts[name])))

    def group(self, call: Call) -> Hashable:
        """Return which of texts, images and boxes are embedded."""
        return (bool(call.texts), bool(call.boxes)) if isinstance(call, EmbeddingsCall) else None

    def answer(self, calls: Sequence[Call]) -> list[Any]:
        """Embed what a batch of calls holds together, or locate phrases call by call."""
        with use_precision(self.precision, self.model.network):
            embeddings = [call for call in calls if isinstance(call, EmbeddingsCall)]
            return self._embed(embeddings) if embeddings else [self._locate(call) for call in calls]

    def _embed(self, calls: Sequence[EmbeddingsCall]) -> list[EmbeddingsReply]:
        # `group` keeps texts, images and boxes apart, so the first call represents the whole batch.
        if calls[0].boxes:
            parts = [self.model.encode_regions(call.images[0].source, call.boxes) for call in calls]
            return [EmbeddingsReply(part) for part in parts]
        if calls[0].texts:
            vectors = self.model.encode_text([text for call in calls for text in call.texts])
        else:
            vectors = self.model.encode_images(image.source for call in calls for image in call.images)
        ends = accumulate((len(call.texts or call.images) for call in calls), initial=0)
        return [EmbeddingsReply(vectors[start:end]) for start, end in pairwise(ends)]

    def _locate(self, call: Call) -> tuple[Located, ...]:
        assert isinstance(call, LocateCall), call
        located = locate_phrases(self.model.network, call.image.source, call.phrases, cache=self._texts)
        return tuple(
            Located(
                each.phrase,
                _box_or_none(each.box),
                each.scores[each.rule],
                Verdict(each.has_match, each.reason, each.floor, each.unknown_words),
                each.scores,
            )
            for each in located
        )


def _box_or_none(corners: Sequence[float]) -> Box | None:
    # A head may predict corners outside the image or in the wrong order; a box without area is not returned.
    x1, y1, x2, y2 = np.clip(corners, 0, 1).tolist()
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def matches(folder: Path) -> bool:
    """Return whether a folder holds an image-text model of Foveate, open_clip or transformers."""
    config = read_folder_config(folder)
    is_foreign = "kind" not in config and str(config.get("model_type")) in KIND_OF_TYPE
    return config.get("kind") == KIND or is_foreign or (folder / OPEN_CLIP_CONFIG).is_file()


def open_adapter(folder: Path, *, name: str, device: str | None, precision: str, max_tokens: int) -> LocalizerAdapter:
    """Open the model of a folder."""
    return LocalizerAdapter(open_model(folder, device=device), name=name, precision=precision)
