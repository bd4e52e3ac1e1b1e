"""Whether an assertion fits its image, judged by an image-text model: an approximation, and the rule says which one.

An absolute cosine says nothing across texts: short and general ones lie high for every image. So an assertion is
compared with other images of the same sample: the share of these that fit it worse than its own image. Its rank is
the threshold, the same for every model:

- supported: the own image fits better than 90 % of the others;
- contradicted: it fits no better than half of them;
- unverifiable: between.

An assertion that has nothing to do with its image is then supported one time in ten, which the control of the audit
(shuffled captions) shows. What is true of every image of the sample cannot be supported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.core.progress import track
from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import BadImage
from foveate.vision.features import FeatureCache
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.views import read

SUPPORTED_FROM, CONTRADICTED_TO = 0.9, 0.5
OTHERS = 256  # images that an assertion is compared with
LEAST_IMAGES = 20
_BATCH = 64


@dataclass(frozen=True)
class OpenedModel:
    """A model and its name: its folder's, with the start of the hash of its weights, as verdicts depend on these."""

    model: LocalizingModel
    name: str

    @classmethod
    def open(cls, folder: Path, *, device: str | None = None) -> OpenedModel:
        """Opens a model folder.

        Raises:
            UserError: when the folder holds no model.
        """
        model = load_model(folder, device=device)
        return cls(model, f"{folder.name} ({sha256_file(folder / 'model.safetensors')[:12]})")


@dataclass
class ModelJudge:
    """The images of a sample as a model sees them.

    Attributes:
        rows: of the collection, those that could be read. image_NE: unit length. bad: row -> reason of the others.
        name: the model's, see `OpenedModel`.
    """

    model: LocalizingModel
    name: str
    rows: NDArray[np.int64]
    image_NE: NDArray[np.float32]
    seed: int = 0
    bad: dict[int, str] = field(default_factory=dict)

    @classmethod
    def seeing(
        cls,
        opened: OpenedModel,
        collection: Collection,
        rows: NDArray[np.int64],
        *,
        seed: int = 0,
        cache: Path | None = None,
    ) -> ModelJudge:
        """Encodes the images; frozen features are kept in `cache`.

        Raises:
            UserError: when fewer than LEAST_IMAGES could be read.
        """
        kept, bad, image_NE = encode_images(opened.model, collection, np.sort(rows), cache=cache)
        if len(kept) < LEAST_IMAGES:
            raise UserError(
                f"the sample has {len(kept)} readable images: a model judges an assertion against others, at least "
                f"{LEAST_IMAGES}"
            )
        return cls(opened.model, opened.name, kept, image_NE, seed, bad)

    @property
    def definition(self) -> str:
        """What the verdicts mean, with the model's name."""
        others = min(OTHERS, len(self.rows) - 1)
        return (
            f"Judged by the image-text model {self.name}: an assertion is supported when its own image fits it "
            f"better than {SUPPORTED_FROM:.0%} of {others} other images of the sample, contradicted when it fits no "
            f"better than {CONTRADICTED_TO:.0%} of them, else unverifiable. Chance supports {1 - SUPPORTED_FROM:.0%}."
        )

    def judge(self, rows: Sequence[int], assertions: Sequence[Sequence[str]]) -> list[list[str]]:
        """Verdicts of the assertions of each row; those of an image that could not be read are unverifiable."""
        distinct = list(dict.fromkeys(text for said in assertions for text in said))
        place = {text: number for number, text in enumerate(distinct)}
        text_TE = self._texts(distinct)
        index = {int(row): number for number, row in enumerate(self.rows)}
        found = []
        for row, said in zip(rows, assertions, strict=True):
            own = index.get(int(row))
            if own is None or not said:
                found.append([UNVERIFIABLE] * len(said))
                continue
            others = self._others(own)
            text_SE = text_TE[[place[text] for text in said]]
            cosine_S, cosine_SO = text_SE @ self.image_NE[own], text_SE @ self.image_NE[others].T
            rank_S = (cosine_SO < cosine_S[:, None]).mean(1)
            found.append([verdict(float(rank)) for rank in rank_S])
        return found

    def scores(self, rows: Sequence[int], captions: Sequence[str]) -> list[float | None]:
        """CLIPScore of each caption (Hessel et al. 2021): 2.5 max(0, cosine with its image); None for an image that
        could not be read."""
        index = {int(row): number for number, row in enumerate(self.rows)}
        text_NE = self._texts(captions)
        own = [index.get(int(row)) for row in rows]
        return [
            None if place is None else 2.5 * max(0.0, float(text_E @ self.image_NE[place]))
            for place, text_E in zip(own, text_NE, strict=True)
        ]

    def _others(self, own: int) -> NDArray[np.int64]:
        rng = seeds.generator("other pictures", self.seed, int(self.rows[own]))
        count = len(self.rows)
        chosen = rng.choice(count - 1, size=min(OTHERS, count - 1), replace=False)
        return chosen + (chosen >= own)

    @torch.no_grad()
    def _texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        found = np.zeros((len(texts), self.image_NE.shape[1]), np.float32)
        starts = range(0, len(texts), 256)
        for start in track(starts, description="assertions, parts of 256") if len(starts) > 4 else starts:
            chosen = order[start : start + 256]
            found[chosen] = self.model.encode_text([texts[number] for number in chosen]).cpu().numpy()
        return found


def verdict(rank: float) -> str:
    """The verdict of the share of other images that fit worse.

    >>> verdict(0.95), verdict(0.7), verdict(0.3)
    ('supported', 'unverifiable', 'contradicted')
    """
    if rank > SUPPORTED_FROM:
        return SUPPORTED
    return CONTRADICTED if rank <= CONTRADICTED_TO else UNVERIFIABLE


@torch.no_grad()
def encode_images(
    model: LocalizingModel, collection: Collection, rows: NDArray[np.int64], *, cache: Path | None
) -> tuple[NDArray[np.int64], dict[int, str], NDArray[np.float32]]:
    """Rows that could be read, reasons of the others, and unit-length embeddings of the images.

    Args:
        rows: ascending.
    """
    encoder = model.image_encoder
    bad: dict[int, str] = {}
    features: dict[int, torch.Tensor] = {}
    store = None
    if encoder.fingerprint() and cache is not None:
        store = FeatureCache(
            encoder, collection, rows, folder=cache, views=1, view_of=lambda row, view: View(), device=model.device
        )
        store.fill()
        bad = dict(store.bad)
    parts, kept = [], []
    for start in track(range(0, len(rows), _BATCH), description=f"images, parts of {_BATCH}"):
        chosen = [row for row in rows[start : start + _BATCH].tolist() if row not in bad]
        for row in chosen:
            if store is not None:
                features[row] = store.features(row, 0)
                continue
            try:
                features[row] = read(collection, row, encoder.preprocess)[0]
            except BadImage as problem:
                bad[row] = str(problem)
        good = [row for row in chosen if row in features]
        if good:
            stacked = torch.stack([features.pop(row) for row in good]).to(model.device)
            tokens = encoder(stacked if store is not None else encoder.frozen_features(stacked))
            parts.append(F.normalize(tokens.embedding_BE.float(), dim=-1).cpu().numpy())
            kept += good
    image_NE = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
    return np.array(kept, dtype=np.int64), bad, image_NE


def definition_hash(definition: str) -> str:
    """A short hash of a judge's definition, for reports that are compared later."""
    return hashlib.sha256(definition.encode()).hexdigest()[:12]
