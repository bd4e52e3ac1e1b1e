"""What one visit to a picture gives: its features, a format drawn uniformly, the prompt and the target."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.caption.small.rows import ALIGN_STAGE, FORMAT_STAGE, Row
from foveate.caption.small.tokens import CaptionTokens, length_class
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.settings import seeds
from foveate.settings.errors import UserError
from foveate.training.loader import BadSample
from foveate.vision.encoder import ImageEncoder
from foveate.vision.features import FeatureCache
from foveate.vision.pixels import Preprocess
from foveate.vision.views import input_boxes, placed

WORD_STAGE = 0


@dataclass(frozen=True)
class Places:
    """What the word loss knows of one picture: R places, each with cells and words.

    cells_RP: share of each prefix position in the mean that stands for the place. words: places of its telling words
    in the list of all.
    """

    cells_RP: NDArray[np.float32]
    words: tuple[tuple[int, ...], ...]


NOWHERE = Places(np.zeros((0, 0), np.float32), ())


def telling_words(
    rows: Iterable[Row],
    tokens: CaptionTokens,
    collection: Collection,
    *,
    common: float,
    regions: bool,
    side: int,
    preprocess: Preprocess,
) -> tuple[NDArray[np.int64], dict[int, Places]]:
    """Token ids that tell pictures apart, and for each row of the collection its places with their words.

    Telling is what occurs in the targets of at least two pictures and at most the share `common` of them.

    Args:
        regions: whether regions are places of their own. side: of the prefix's square grid.
    """
    by_picture: dict[int, set[int]] = defaultdict(set)
    rows = [row for row in rows if row.kind != "afc"]
    for row, ids in zip(rows, tokens.encode([row.target for row in rows]), strict=True):
        by_picture[row.row] |= set(ids)
    uses = Counter(token for ids in by_picture.values() for token in ids)
    kept = sorted(token for token, n in uses.items() if 2 <= n <= common * len(by_picture))
    place = {token: number for number, token in enumerate(kept)}
    found = {}
    for row, ids in by_picture.items():
        boxed = _regions(collection, row, tokens, place, side, preprocess) if regions else None
        whole = tuple(sorted(place[token] for token in ids if token in place))
        if boxed is not None:
            found[row] = boxed
        elif whole:
            found[row] = Places(np.full((1, side * side), 1 / side**2, np.float32), (whole,))
    return np.asarray(kept, dtype=np.int64), found


def _regions(
    collection: Collection, row: int, tokens: CaptionTokens, place: dict[int, int], side: int, preprocess: Preprocess
) -> Places | None:
    """The regions of a picture as places, None where it has none with a telling word."""
    regions = collection.regions_of(row)
    if not regions:
        return None
    size = (int(collection.index["width"][row]), int(collection.index["height"][row]))
    moved_K4, kept_R = input_boxes(
        placed(preprocess, size, View()), np.stack([region.box.to_array() for region in regions])
    )
    phrases = [regions[number].phrase for number in np.flatnonzero(kept_R)]
    # As within a sentence: words there begin with a blank.
    words = [
        tuple(sorted({place[token] for token in ids if token in place}))
        for ids in tokens.encode([f" {phrase}" for phrase in phrases])
    ]
    good = [number for number, own in enumerate(words) if own]
    if not good:
        return None
    cells = np.stack([cell_shares(moved_K4[number], side) for number in good])
    return Places(cells, tuple(words[number] for number in good))


def cell_shares(box_4: NDArray[np.floating], side: int) -> NDArray[np.float32]:
    """How much of a box lies in each of `side` x `side` cells of the picture, row by row; the sum is 1."""
    edges = np.linspace(0, 1, side + 1)
    low, high = edges[:-1], edges[1:]
    across, down = (
        np.clip(np.minimum(high, box_4[end]) - np.maximum(low, box_4[start]), 0, None)
        for start, end in ((0, 2), (1, 3))
    )
    shares = np.outer(down, across).ravel()
    return (shares / shares.sum()).astype(np.float32)


class CaptionSamples:
    """The training samples of one stage; see `foveate.training.loader.Dataset`.

    Args:
        stage: 0 (words), 1 or 2. replay: share of samples of stage 1 in stage 2.
        places: from `telling_words`.

    Raises:
        UserError: when the stage has no rows.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokens: CaptionTokens,
        features: FeatureCache,
        *,
        stage: int,
        replay: float,
        longest_alt: int,
        places: dict[int, Places],
    ) -> None:
        self.tokens, self.features, self.stage, self.replay = tokens, features, stage, replay
        self.places = places
        targets = tokens.encode([row.target for row in rows])
        alts = tokens.encode([row.alt for row in rows])
        self._rows: dict[int, dict[int, list[tuple[list[int], list[int]]]]] = {FORMAT_STAGE: {}, ALIGN_STAGE: {}}
        self.keys = {row.row: row.image for row in rows}
        for row, target, alt in zip(rows, targets, alts, strict=True):
            shown = alt[:longest_alt] if row.kind == "afc" else None
            prompt = tokens.prompt(row.kind, length=length_class(row.tokens), alt=shown)
            self._rows[row.stage].setdefault(row.row, []).append((prompt, [*target, tokens.end]))
        self._earlier = np.asarray(sorted(self._rows[FORMAT_STAGE]), dtype=np.int64)
        if stage == WORD_STAGE:
            self.rows = np.asarray(sorted(places), dtype=np.int64)
        else:
            self.rows = np.asarray(sorted(self._rows[stage]), dtype=np.int64)
        if not len(self.rows):
            wants = {ALIGN_STAGE: "data.description_kinds, or alignment.steps=0"}.get(stage, "data.short_kinds")
            raise UserError(f"no picture has material for stage {stage}: name the caption kinds in {wants}")

    def sample(self, row: int, visit: int, seed: int) -> dict[str, Any]:
        """The format is drawn uniformly from those that the picture has; a replayed sample is of another picture."""
        stage = self.stage
        if stage == ALIGN_STAGE and len(self._earlier) and seeds.uniform("replay", seed, visit, row) < self.replay:
            stage = FORMAT_STAGE
            row = int(self._earlier[seeds.integer("replayed", seed, visit, row) % len(self._earlier)])
        if row in self.features.bad:
            raise BadSample(self.keys[row], self.features.bad[row])
        found = {"image": self.features.features(row, 0), "places": self.places.get(row, NOWHERE)}
        if stage == WORD_STAGE:
            return {**found, "prompt": [], "target": []}
        choices = self._rows[stage][row]
        prompt, target = choices[int(seeds.uniform("format", seed, visit, row) * len(choices))]
        return {**found, "prompt": prompt, "target": target}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Right-padded ids [B, T], where the target begins and ends; places flat, with the number of their picture."""
        sequences = [sample["prompt"] + sample["target"] for sample in samples]
        places: list[Places] = [sample["places"] for sample in samples]
        counts = [len(one.words) for one in places]
        cells = [one.cells_RP for one in places if one.words]
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "ids_BT": padded(sequences, self.tokens.pad),
            "starts_B": torch.tensor([len(sample["prompt"]) for sample in samples]),
            "ends_B": torch.tensor([len(sequence) for sequence in sequences]),
            "place_R": torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
            "cells_RP": torch.from_numpy(np.concatenate(cells) if cells else np.zeros((0, 1), np.float32)),
            "words_RW": padded([words for one in places for words in one.words], -1),
        }


def padded(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """Sequences of integers side by side, filled up on the right: [B, longest]."""
    longest = max(map(len, sequences), default=0)
    result = torch.full((len(sequences), longest), value, dtype=torch.int64)
    for place, sequence in enumerate(sequences):
        result[place, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return result


def cached_features(
    collection: Collection, encoder: ImageEncoder, rows: NDArray[np.int64], *, cache: Path, device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> FeatureCache:  # fmt: skip
    """The frozen features of the whole pictures: the same entries that `foveate pretrain` uses without random views."""
    features = FeatureCache(
        encoder, collection, rows, folder=cache, views=1, view_of=lambda row, view: View(), device=device, share=share
    )
    features.fill()
    return features
