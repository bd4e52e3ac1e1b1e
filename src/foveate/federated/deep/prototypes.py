"""Pseudo-labels and the loss against frozen prototypes: pure functions.

Names are those of DeepFeCA (arXiv 2407.12764); the form is that of DeepCluster-v2 (facebookresearch/swav,
main_deepclusterv2.py): unit vectors, temperature 0.1, prototypes without gradient, label -100 is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

TEMPERATURE = 0.1
IGNORE = -100


def pseudo_labels(features_BD: Tensor, prototypes_KD: Tensor, *, spherical: bool = True) -> Tensor:
    """The nearest prototype of each row, [B]: by cosine, or by Euclidean distance; ties to the lower number."""
    if spherical:
        return (normalize(features_BD, dim=1) @ normalize(prototypes_KD, dim=1).T).argmax(1)
    return ((features_BD[:, None] - prototypes_KD[None]) ** 2).sum(-1).argmin(1)


def prototype_loss(
    features_BD: Tensor, prototypes_KD: Tensor, labels_B: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Cross-entropy of cosines over the temperature, in the mean over rows whose label is not -100.

    The prototypes are constants: no gradient flows into them.
    """
    with torch.no_grad():
        frozen_KD = normalize(prototypes_KD, dim=1)
    logits_BK = normalize(features_BD, dim=1) @ frozen_KD.T / temperature
    return cross_entropy(logits_BK, labels_B, ignore_index=IGNORE)
