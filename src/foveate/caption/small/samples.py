"""Training samples: features of an image, with prompts and targets of all its formats in one sequence."""

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

from foveate.caption.chat_format import length_class
from foveate.caption.small.tokens import CaptionTokens
from foveate.caption.targets.rows import ALIGN_STAGE, FORMAT_STAGE, Row
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.training.loader import BadSample
from foveate.vision.encoder import ImageEncoder
from foveate.vision.feature_cache import FeatureCache
from foveate.vision.preprocess import Preprocess, move_boxes, place_image

WORD_STAGE = 0


@dataclass(frozen=True)
class Places:
    """Regions of one image for the word loss.

    Attributes:
        cells_RP: weight of each prefix position in the mean that represents the region.
        word_ids: indices of its discriminative words in the list of all.
    """

    cells_RP: NDArray[np.float32]
    word_ids: tuple[tuple[int, ...], ...]


NOWHERE = Places(np.zeros((0, 0), np.float32), ())
Text = tuple[list[int], list[int]]  # ids of prompt and target


def telling_words(
    rows: Iterable[Row],
    tokens: CaptionTokens,
    collection: Collection,
    *,
    further: Iterable[int] = (),
    common: float,
    regions: bool,
    side: int,
    preprocess: Preprocess,
) -> tuple[NDArray[np.int64], dict[int, Places]]:
    """Token ids that tell images apart, and for each row of the collection its places with their words.

    Telling is what occurs in the phrases of regions of at least two images; where an image has none, what occurs in
    the targets of at least two images and at most the share `common` of them.

    Args:
        further: rows of the collection without targets whose regions are used, too.
        regions: whether regions are places of their own. side: of the prefix's square grid.
    """
    targets: dict[int, set[int]] = defaultdict(set)
    rows = [row for row in rows if row.kind != "afc"]
    for row, ids in zip(rows, tokens.encode([row.target for row in rows]), strict=True):
        targets[row.row] |= set(ids)
    places_of = _places(collection, sorted({*targets, *further}), tokens, side, preprocess) if regions else {}
    whole = {row: ids for row, ids in targets.items() if row not in places_of}
    uses = Counter(token for ids in whole.values() for token in ids)
    # Once per image, however many of its regions have the word.
    distinct = [{token for ids in places.word_ids for token in ids} for places in places_of.values()]
    named = Counter(token for of_image in distinct for token in of_image)
    vocabulary = {token for token, n in uses.items() if 2 <= n <= common * len(whole)}
    vocabulary |= {token for token, n in named.items() if n >= 2}
    places_of |= {
        row: Places(np.full((1, side * side), 1 / side**2, np.float32), (tuple(ids),)) for row, ids in whole.items()
    }
    number = {token: region for region, token in enumerate(sorted(vocabulary))}
    numbered_places = {
        row: numbered for row, places in places_of.items() if (numbered := _numbered(places, number)).word_ids
    }
    return np.asarray(sorted(vocabulary), dtype=np.int64), numbered_places


def _numbered(places: Places, number: dict[int, int]) -> Places:
    """Replace token ids by indices of words; drop regions without a word."""
    word_ids = [tuple(sorted({number[token] for token in ids if token in number})) for ids in places.word_ids]
    good = [index for index, ids in enumerate(word_ids) if ids]
    return Places(places.cells_RP[good], tuple(word_ids[index] for index in good))


def _places(
    collection: Collection, rows: Sequence[int], tokens: CaptionTokens, side: int, preprocess: Preprocess
) -> dict[int, Places]:
    """The regions of images as places, their words as token ids, by row; without images where none can be seen."""
    seen = {row: regions for row in rows if (regions := _regions(collection, row, side, preprocess))}
    # As within a sentence: words there begin with a blank.
    distinct = list(dict.fromkeys(f" {phrase}" for _, phrases in seen.values() for phrase in phrases))
    ids = {phrase: tuple(token_ids) for phrase, token_ids in zip(distinct, tokens.encode(distinct), strict=True)}
    return {
        row: Places(cells, tuple(ids[f" {phrase}"] for phrase in phrases)) for row, (cells, phrases) in seen.items()
    }


def _regions(
    collection: Collection, row: int, side: int, preprocess: Preprocess
) -> tuple[NDArray[np.float32], list[str]] | None:
    """Shares of cells [R, side**2] and phrases of the regions of an image; None where none can be seen."""
    regions = collection.read_regions(row)
    if not regions:
        return None
    size = (int(collection.index["width"][row]), int(collection.index["height"][row]))
    moved_K4, kept_R = move_boxes(
        place_image(preprocess, size, View()), np.stack([region.box.to_array() for region in regions])
    )
    if not len(moved_K4):
        return None
    cells = np.stack([cell_shares(box_4, side) for box_4 in moved_K4])
    return cells, [regions[number].phrase for number in np.flatnonzero(kept_R)]


def cell_shares(box_4: NDArray[np.floating], side: int) -> NDArray[np.float32]:
    """Share of a box in each of `side` x `side` cells of the image, row by row; the sum is 1."""
    edges = np.linspace(0, 1, side + 1)
    low, high = edges[:-1], edges[1:]
    across, down = (
        np.clip(np.minimum(high, box_4[end]) - np.maximum(low, box_4[start]), 0, None)
        for start, end in ((0, 2), (1, 3))
    )
    shares = np.outer(down, across).ravel()
    return (shares / shares.sum()).astype(np.float32)


def nothing_for(stage: int) -> str:
    """Return the error for a stage without targets."""
    wants = {ALIGN_STAGE: "data.description_kinds, or alignment.steps=0"}.get(stage, "data.short_kinds")
    return f"no image has material for stage {stage}: name the caption kinds in {wants}"


class CaptionSamples:
    """The training samples of one stage; see `foveate.training.loader.Dataset`.

    Args:
        stage: 0 (words), 1 or 2. replay: share of samples of stage 1 in stage 2.
        places: from `telling_words`. captioned: share of a batch's images whose texts are in it.

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
        max_alt_tokens: int,
        places: dict[int, Places],
        captioned: float = 1.0,
    ) -> None:
        self.tokens, self.features, self.stage, self.replay = tokens, features, stage, replay
        self.captioned = captioned
        self.places = places
        targets = tokens.encode([row.target for row in rows])
        alts = tokens.encode([tokens.normalize_alt(row.alt) for row in rows])
        self._rows: dict[int, dict[int, list[Text]]] = {FORMAT_STAGE: {}, ALIGN_STAGE: {}}
        for row, target, alt in zip(rows, targets, alts, strict=True):
            prompt_alt = alt[:max_alt_tokens] if row.kind == "afc" else None
            prompt = tokens.prompt(row.kind, length=length_class(row.tokens), alt=prompt_alt)
            self._rows[row.stage].setdefault(row.row, []).append((prompt, [*target, tokens.end]))
        self._earlier = np.asarray(sorted(self._rows[FORMAT_STAGE]), dtype=np.int64)
        if stage == WORD_STAGE:
            self.rows = np.asarray(sorted(places), dtype=np.int64)
        else:
            self.rows = np.asarray(sorted(self._rows[stage]), dtype=np.int64)
        if not len(self.rows):
            raise UserError(nothing_for(stage))

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """Return all formats of an image in the stage; a replayed sample is of another image."""
        stage = self.stage
        if stage == ALIGN_STAGE and len(self._earlier) and seeds.uniform("replay", seed, epoch, row) < self.replay:
            stage = FORMAT_STAGE
            row = int(self._earlier[seeds.integer("replayed", seed, epoch, row) % len(self._earlier)])
        if row in self.features.bad:
            raise BadSample(self.features.collection.keys[row], self.features.bad[row])
        result = {"image": self.features.features(row, 0), "places": self.places.get(row, NOWHERE)}
        return {**result, "texts": [] if stage == WORD_STAGE else self._rows[stage][row]}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """The texts of the first images, those of each one after the other (see `packed`); places flat, with the
        number of their image."""
        places: list[Places] = [sample["places"] for sample in samples]
        counts = [len(of_image.word_ids) for of_image in places]
        cells = [of_image.cells_RP for of_image in places if of_image.word_ids]
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            **packed([sample["texts"] for sample in samples[: self._captioned(len(samples))]], pad=self.tokens.pad),
            "place_R": torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
            "cells_RP": torch.from_numpy(np.concatenate(cells) if cells else np.zeros((0, 1), np.float32)),
            "words_RW": padded([region_words for of_image in places for region_words in of_image.word_ids], -1),
        }

    def _captioned(self, samples: int) -> int:
        return max(1, round(self.captioned * samples))


def packed(texts: Sequence[Sequence[Text]], *, pad: int) -> dict[str, Tensor]:
    """The texts of B images, those of each in one sequence.

    ids_BT: their tokens. before_BT: of prompts the token before (`pad` for the first), else `pad`. text_BT: the number
    of the text from 1, 0 behind the last one. place_BT: the position within the text. target_BT: whether the token is
    one that is learnt.
    """
    columns = {
        "ids_BT": [[token for prompt, target in pairs for token in (*prompt, *target)] for pairs in texts],
        "before_BT": [
            [token for prompt, target in pairs for token in (pad, *prompt[:-1], *(pad for _ in target))]
            for pairs in texts
        ],
        "text_BT": [
            [number for number, (prompt, target) in enumerate(pairs, 1) for _ in (*prompt, *target)] for pairs in texts
        ],
        "place_BT": [
            [position for prompt, target in pairs for position in range(len(prompt) + len(target))] for pairs in texts
        ],
        "target_BT": [
            [learnt for prompt, target in pairs for learnt in (*(0 for _ in prompt), *(1 for _ in target))]
            for pairs in texts
        ],
    }
    filled = {"ids_BT": pad, "before_BT": pad}
    tensors = {name: padded(rows, filled.get(name, 0)) for name, rows in columns.items()}
    return {**tensors, "target_BT": tensors["target_BT"].bool()}


def padded(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """Pad sequences of integers on the right: [B, longest]."""
    longest = max(map(len, sequences), default=0)
    result = torch.full((len(sequences), longest), value, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        result[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return result


def cached_features(
    collection: Collection, encoder: ImageEncoder, rows: NDArray[np.int64], *, cache: Path, device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> FeatureCache:  # fmt: skip
    """Cache frozen features of whole images, in the entries that `foveate pretrain` uses without random views."""
    features = FeatureCache(
        encoder, collection, rows, folder=cache, views=1, view_of=lambda row, view: View(), device=device, share=share
    )
    features.fill()
    return features
