"""Baselines of COSMO on the same inputs: a linear head (ERM), and a head that reads place and hour (MLP-concat).

The third one, the linear probe, is solved: `foveate.training.linear_probe`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate.species.links import ImageNetwork, LinkModel, Relation
from foveate.species.numeric import NumericMLP, Start


class LinearBaseline(nn.Module):
    """Empirical risk minimization: encoder and linear head under cross-entropy, all of it at the encoder's rate."""

    image: Any
    drops_last = False

    def __init__(self, image: ImageNetwork) -> None:
        super().__init__()
        self.image = image

    def forward(self, inputs: Tensor, relation: Relation = Relation.SPECIES) -> Tensor:
        """Return logits [B, K]."""
        return self.image(inputs)


class ConcatBaseline(nn.Module):
    """MLP-concat: vectors of image, hour and place, side by side, normalized, and classified.

    It sees place and hour at test time, which COSMO does not. Inputs have `place_width` and `hour_width` more columns
    than the features. Source: the released code of COSMO, model_st.py and run_kge_model_baseline.py.
    """

    image: Any
    drops_last = False

    def __init__(
        self, image: nn.Module, *, num_classes: int, dim: int, place_width: int, hour_width: int, start: Start
    ) -> None:
        super().__init__()
        self.image = image
        self.places = NumericMLP(place_width, dim, start=start)
        self.hours = NumericMLP(hour_width, dim, start=start)
        self.layer_norm = nn.LayerNorm(3 * dim)
        self.mlp, self.act = nn.Linear(3 * dim, dim), nn.PReLU()
        self.classifier = nn.Linear(dim, num_classes)
        nn.init.xavier_uniform_(self.mlp.weight)
        nn.init.xavier_uniform_(self.classifier.weight)
        self.widths = (place_width, hour_width)

    def forward(self, inputs: Tensor, relation: Relation = Relation.SPECIES) -> Tensor:
        """Return logits [B, K] of features, scaled places and scaled hours, side by side."""
        features = inputs.shape[1] - sum(self.widths)
        x, places, hours = inputs.split([features, *self.widths], dim=1)
        joined = torch.cat([self.image(x), self.hours(hours), self.places(places)], dim=1)
        return self.classifier(self.act(self.mlp(self.layer_norm(joined))))


SpeciesNetwork = LinkModel | LinearBaseline | ConcatBaseline
