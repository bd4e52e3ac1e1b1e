"""What one visit to a picture gives: its features, a format drawn uniformly, the prompt and the target."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
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

WORD_STAGE = 0


def telling_words(
    rows: Iterable[Row], tokens: CaptionTokens, *, common: float
) -> tuple[NDArray[np.int64], dict[int, Any]]:
    """Token ids that tell pictures apart, and for each row number the places of its own among them.

    Those that occur in the targets of at least two pictures and at most the share `common` of them.
    """
    by_picture: dict[int, set[int]] = defaultdict(set)
    rows = [row for row in rows if row.kind != "afc"]
    for row, ids in zip(rows, tokens.encode([row.target for row in rows]), strict=True):
        by_picture[row.row] |= set(ids)
    uses = Counter(token for ids in by_picture.values() for token in ids)
    kept = np.asarray(sorted(t for t, n in uses.items() if 2 <= n <= common * len(by_picture)), dtype=np.int64)
    place = {token: number for number, token in enumerate(kept.tolist())}
    return kept, {
        row: np.asarray(sorted(place[t] for t in ids if t in place), np.int64) for row, ids in by_picture.items()
    }


class CaptionSamples:
    """The training samples of one stage; see `foveate.training.loader.Dataset`.

    Args:
        stage: 0 (words), 1 or 2. replay: share of samples of stage 1 in stage 2.
        words_of: from `telling_words`.

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
        words_of: dict[int, Any],
    ) -> None:
        self.tokens, self.features, self.stage, self.replay = tokens, features, stage, replay
        self.words_of = words_of
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
            self.rows = np.asarray(sorted(row for row, words in words_of.items() if len(words)), dtype=np.int64)
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
        found = {"image": self.features.features(row, 0), "words": self.words_of.get(row, np.zeros(0, np.int64))}
        if stage == WORD_STAGE:
            return {**found, "prompt": [], "target": []}
        choices = self._rows[stage][row]
        prompt, target = choices[int(seeds.uniform("format", seed, visit, row) * len(choices))]
        return {**found, "prompt": prompt, "target": target}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Right-padded ids [B, T], where the target begins and ends; places of the telling words [B, W], else -1."""
        sequences = [sample["prompt"] + sample["target"] for sample in samples]
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "ids_BT": padded(sequences, self.tokens.pad),
            "starts_B": torch.tensor([len(sample["prompt"]) for sample in samples]),
            "ends_B": torch.tensor([len(sequence) for sequence in sequences]),
            "words_BW": padded([sample["words"].tolist() for sample in samples], -1),
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
