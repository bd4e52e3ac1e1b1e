"""Baselines of COSMO on the same inputs: a linear head (ERM), and a head that reads place and hour (MLP-concat).

The third one, the linear probe, is solved: `foveate.training.linear_probe`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.species.links import ImageNetwork, LinkModel, Relation
from foveate.species.numeric import HOUR_WIDTHS, PLACE_WIDTHS, NumericMLP, Start, scale_hours, scale_places
from foveate.species.recipe import GraphSettings


class LinearBaseline(nn.Module):
    """Empirical risk minimization: encoder and linear head under cross-entropy, all of it at the encoder's rate."""

    image: Any
    # No batch norm follows the encoder, unlike in ConvE, so a last batch of one image may be kept.
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
        # Initialize only the weights, as model_st.py does; the biases keep PyTorch's defaults.
        nn.init.xavier_uniform_(self.mlp.weight)
        nn.init.xavier_uniform_(self.classifier.weight)
        self.widths = (place_width, hour_width)

    def forward(self, inputs: Tensor, relation: Relation = Relation.SPECIES) -> Tensor:
        """Return logits [B, K] of features, scaled places and scaled hours, side by side."""
        features = inputs.shape[1] - sum(self.widths)
        x, places, hours = inputs.split([features, *self.widths], dim=1)
        # Image, hour, place is the order of model_st.py; the inputs have places before hours.
        joined = torch.cat([self.image(x), self.hours(hours), self.places(places)], dim=1)
        return self.classifier(self.act(self.mlp(self.layer_norm(joined))))


SpeciesNetwork = LinkModel | LinearBaseline | ConcatBaseline


def build_concat(image: nn.Module, graph: GraphSettings, num_classes: int) -> ConcatBaseline:
    """Build MLP-concat with the widths of the graph's settings."""
    return ConcatBaseline(
        image,
        num_classes=num_classes,
        dim=graph.dim,
        place_width=PLACE_WIDTHS[graph.place_input],
        hour_width=HOUR_WIDTHS[graph.hour_input],
        start=graph.start,
    )


def concat_inputs(
    features: Tensor,
    graph: GraphSettings,
    places_N2: ArrayLike | None,
    hours_N: ArrayLike | None,
    *,
    reference: NDArray[np.float64],
) -> Tensor:
    """Put features, scaled places and scaled hours side by side: inputs of `ConcatBaseline`.

    Raises:
        UserError: shapes differ, or a place or hour is unknown; nothing is imputed.
    """
    places, hours = np.asarray(places_N2, np.float64), np.asarray(hours_N, np.float64)
    if places.shape != (len(features), 2) or hours.shape != (len(features),):
        raise UserError(
            f"places and hours: wrong shapes (got {list(places.shape)} and {list(hours.shape)}); expected "
            f"[{len(features)}, 2] and [{len(features)}]"
        )
    # The layer norm has a width of 3 dim, so the network needs all three vectors, as the released code does.
    missing_N = np.isnan(places).any(axis=1) | np.isnan(hours)
    if missing_N.any():
        row = int(np.flatnonzero(missing_N)[0])
        raise UserError(f"image {row} has no place or no hour; method 'mlp_concat' needs both of every image")
    scaled = scale_places(places, graph.place_input, reference_N2=reference)
    return torch.cat([features, scaled, scale_hours(hours, graph.hour_input)], dim=1)
