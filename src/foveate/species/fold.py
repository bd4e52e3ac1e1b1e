"""Folded head: species scores of a link model as one linear layer on the features of an image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from foveate.species.links import LinkModel, Relation


class LinearHead(NamedTuple):
    """Logits = features [B, F] @ weight_KF.T + bias_K."""

    weight_KF: Tensor
    bias_K: Tensor

    def logits(self, features_BF: Tensor) -> Tensor:
        """Return logits [B, K]."""
        return features_BF @ self.weight_KF.T + self.bias_K


@torch.no_grad()
def fold_species(model: LinkModel) -> Tensor:
    """Return the matrix [K, D] whose product with an image's vector is its species scores.

    For DistMult its rows are the relation's vector times each class's row of the entity table.

    Raises:
        UserError: the score is not linear in the image (ConvE).
    """
    return model.score.fold(model.relations.weight[Relation.SPECIES], model.tails(Relation.SPECIES))


@torch.no_grad()
def fold_head(model: LinkModel) -> LinearHead:
    """Return the species scores as a linear layer on the encoder's features, the layer `image.fc` included.

    Raises:
        UserError: see `fold_species`.
    """
    folded_KD, fc = fold_species(model), model.image.fc
    assert isinstance(fc, nn.Linear), "the network of images ends with a linear layer"
    # Use float64: two products in float32 would differ from the model's own scores in the last digits twice.
    wide_KD = folded_KD.double()
    weight_KF, bias_K = wide_KD @ fc.weight.double(), wide_KD @ fc.bias.double()
    return LinearHead(weight_KF.to(folded_KD.dtype), bias_K.to(folded_KD.dtype))
