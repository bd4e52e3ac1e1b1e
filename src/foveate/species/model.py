"""Use a trained species model: probabilities, scores of links, and facts about its classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.core.files import sha256_file
from foveate.core.hub_upload import HubMixin
from foveate.core.model_folder import CONFIG, WEIGHTS
from foveate.species.crops import CropSettings
from foveate.species.links import (
    RELATIONS,
    ConcatBaseline,
    LinearHead,
    LinkModel,
    Relation,
    SpeciesNetwork,
    concat_inputs,
)
from foveate.species.recipe import GraphSettings
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa
from foveate.vision.encoder import ImageEncoder
from foveate.vision.feature_cache import VectorEncoder
from foveate.vision.registry import build_image_encoder

# Limits the memory of scores that are not linear: ConvE's maps in the paper's size take 39 kB a row.
_BATCH = 4096


@dataclass(frozen=True)
class SpeciesInfo:
    """Description of a model in its folder, beside the weights.

    Attributes:
        encoder: settings that build the encoder again, None where features came from elsewhere.
        fingerprint: of the encoder that features were computed with; "" where its weights are in the folder.
        entity_taxa: taxon of each row of the entity table. targets_K: row of each class.
        images_K: training images of each class.
        hours: candidates of the relation "time". places_P2: of "place", in degrees; stored only if asked for.
        reference_R2: see `summarize_reference`; stored with them.
        provenance: JSON values about the training.
    """

    method: str
    classes: Classes
    taxa: Taxa
    entity_taxa: NDArray[np.int64]
    targets_K: NDArray[np.int64]
    graph: GraphSettings
    view: CropSettings
    encoder: Mapping[str, Any] | None
    fingerprint: str
    preprocess: Mapping[str, Any] | None
    images_K: NDArray[np.int64]
    hours: NDArray[np.float64]
    places_P2: NDArray[np.float64]
    reference_R2: NDArray[np.float64]
    provenance: Mapping[str, Any]


class SpeciesModel(HubMixin):
    """A trained model, opened from its folder.

    Attributes:
        folder: it was read from. sha256: of its weights.
        info: classes, taxa, view and settings.
        network: the torch module; a `LinkModel`, or a baseline.
        head: the folded linear head, None where the model has none.

    Example:
        >>> model = open_species(species_folder)
        >>> model.classes.labels
        ('deer', 'fox')
        >>> model.probabilities(np.zeros((3, 4), np.float32)).shape
        (3, 2)
    """

    _opener = "foveate.species.folder:open_species"

    def __init__(self, folder: Path, info: SpeciesInfo, network: SpeciesNetwork, head: LinearHead | None) -> None:
        self.folder, self.info, self.head = folder, info, head
        self.network: SpeciesNetwork = network.eval().requires_grad_(False)

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights."""
        return sha256_file(self.folder / WEIGHTS)

    @property
    def classes(self) -> Classes:
        """Labels in the order of the columns."""
        return self.info.classes

    @property
    def taxa(self) -> Taxa:
        """Taxonomy of the classes."""
        return self.info.taxa

    @property
    def view(self) -> CropSettings:
        """The part of an image that the model was trained on."""
        return self.info.view

    @property
    def encoder_settings(self) -> Mapping[str, Any] | None:
        """Settings of the encoder; None where features came from elsewhere."""
        return self.info.encoder

    def load_encoder(self, device: torch.device | str = "cpu") -> ImageEncoder:
        """Build the encoder that turns pixels into features, in evaluation mode.

        Raises:
            UserError: features came from elsewhere, or the encoder is another one than the model was trained with.
        """
        if self.info.encoder is None:
            raise UserError(
                f"{self.folder}: trained on features that came from a file, so it reads no images; expected features "
                "of the same encoder"
            )
        # A trained encoder is among the folder's weights, so it needs no check.
        if isinstance(encoder := self.network.image.encoder, ImageEncoder):
            return encoder.to(device)
        # A frozen encoder is not in the folder; its fingerprint proves that the head gets the features it was fitted
        # to.
        encoder = VectorEncoder(build_image_encoder(self.info.encoder))
        # The fingerprints of older models do not name a trained projection.
        names = {encoder.fingerprint(), f"{encoder.inner.fingerprint()}-vectors"}
        if comparable(self.info.fingerprint) not in map(comparable, names):
            raise UserError(
                f"{self.folder / CONFIG}: the encoder has other weights than the model was trained with (got "
                f"{encoder.fingerprint()}); expected {self.info.fingerprint}"
            )
        return encoder.inner.to(device)

    @torch.no_grad()
    def logits(
        self, features_ND: ArrayLike, *, places_N2: ArrayLike | None = None, hours_N: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Return species scores [N, K] of features.

        Args:
            features_ND: `image_vectors` of the encoder.
            places_N2, hours_N: only for MLP-concat, which needs all of them.

        Raises:
            UserError: features of another width or not finite, or places and hours that are missing or have no effect.
        """
        features = self._check_features(features_ND)
        reads_context = isinstance(self.network, ConcatBaseline)
        # COSMO refuses places instead of ignoring them: at test time it sees only the image (docs/methods/cosmo.md).
        if reads_context != (places_N2 is not None) or reads_context != (hours_N is not None):
            what = "needs places and hours" if reads_context else "takes features alone"
            raise UserError(f"model of method '{self.info.method}' {what}")
        if reads_context:
            features = concat_inputs(features, self.info.graph, places_N2, hours_N, reference=self.info.reference_R2)
        if self.head is not None:
            # DistMult with a fixed relation is linear in the image: w_species * E[k] folded into one matrix.
            return self.head.logits(features).numpy()
        parts = [self._score(part, Relation.SPECIES) for part in features.split(_BATCH)]
        return torch.cat(parts).numpy()

    def probabilities(
        self, features_ND: ArrayLike, *, places_N2: ArrayLike | None = None, hours_N: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Return probabilities [N, K]; see `logits`."""
        scores = self.logits(features_ND, places_N2=places_N2, hours_N=hours_N)
        return torch.from_numpy(scores).softmax(dim=1).numpy()

    @torch.no_grad()
    def predict_links(self, features_ND: ArrayLike, relation: str) -> NDArray[np.float32]:
        """Return the scores of all candidates of a relation: "species", "time" (`hours`) or "place" (`places_P2`).

        Raises:
            UserError: an unknown relation, or one that the folder does not hold.
        """
        choose(relation, list(RELATIONS), "relation")
        if not isinstance(self.network, LinkModel):
            raise UserError(f"model of method '{self.info.method}' has no links; expected 'cosmo'")
        if relation == "place" and self.network.places is None and "place" in self.info.graph.contexts:
            raise UserError(f"{self.folder}: written without locations; train again with --include-locations")
        features = self._check_features(features_ND)
        return torch.cat([self._score(part, RELATIONS[relation]) for part in features.split(_BATCH)]).numpy()

    def _score(self, features: Tensor, relation: Relation) -> Tensor:
        if not isinstance(self.network, LinkModel):
            return self.network(features)
        # Not `self.network(features)`: a trained encoder would take the features for pixels.
        return self.network.score_heads(self.network.image.fc(features), relation)

    def _check_features(self, features_ND: ArrayLike) -> Tensor:
        features = np.asarray(features_ND, dtype=np.float32)
        width = self.network.image.fc.in_features
        if features.ndim != 2 or features.shape[1] != width:
            raise UserError(f"features: wrong shape (got {list(features.shape)}); expected [N, {width}]")
        # NaN would give a row of NaN, which everywhere else means an image that could not be read.
        wrong_N = ~np.isfinite(features).all(axis=1)
        if wrong_N.any():
            raise UserError(f"features: row {int(np.flatnonzero(wrong_N)[0])} has NaN or infinite values")
        return torch.from_numpy(features)

    @property
    def hours(self) -> NDArray[np.float64]:
        """Hours that `predict_links` scores for the relation "time"."""
        return self.info.hours

    @property
    def places_P2(self) -> NDArray[np.float64]:
        """Degrees of the places that `predict_links` scores; none where the folder was written without them."""
        return self.info.places_P2

    @property
    def entity_vectors(self) -> NDArray[np.float32]:
        """The entity table [E, D]: class k is row `info.targets_K[k]`, the taxon of each row is in `info.entity_taxa`.

        Raises:
            UserError: the model is a baseline without entities.
        """
        if not isinstance(self.network, LinkModel):
            raise UserError(f"model of method '{self.info.method}' has no entities; expected 'cosmo'")
        return self.network.entities.weight.numpy()


def comparable(fingerprint: str) -> str:
    """Return a fingerprint of an encoder without its precision, which follows the machine."""
    return re.sub(r"-(float32|float16|bfloat16)\b", "", fingerprint)
