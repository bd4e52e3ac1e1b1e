"""Link model: images, taxa, places and hours as nodes of one graph, the score of every link, and its baselines.

Relations carry the numbers of the released code of COSMO. An image is no row of a table: its vector comes from the
encoder, so that images which were never seen have one. Places and hours come from numeric networks.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from foveate.core.errors import UserError, choose
from foveate.species.recipe import GraphSettings
from foveate.species.score import Score
from foveate.species.scores import SCORES
from foveate.vision.encoder import ImageEncoder

# Numeric networks: places and hours as vectors of the graph, and how their inputs are scaled.


LAYERS = 3
PlaceInput = Literal["raw", "standardized", "sphere"]
HourInput = Literal["raw", "scaled", "circular"]
Start = Literal["official", "sane"]
# Numbers that the network takes of a place or an hour.
PLACE_WIDTHS: dict[str, int] = {"raw": 2, "standardized": 2, "sphere": 3}
HOUR_WIDTHS: dict[str, int] = {"raw": 1, "scaled": 1, "circular": 2}
_MIN_DEVIATION = 1e-9  # degrees; distinct places differ by more than 1e-7


def mlp_widths(inputs: int, outputs: int, layers: int = LAYERS) -> list[int]:
    """Return the output width of each layer, growing in equal steps to `outputs`.

    Source: the released code of COSMO, class MLP: step = floor((inputs - outputs) / layers), widths
    outputs + i step for i = layers - 1 ... 0.

    Raises:
        UserError: a width would not be positive.
    """
    # Python's floor of a negative number: the steps are rounded up, which makes the first layer narrower.
    step = (inputs - outputs) // layers
    widths = [outputs + index * step for index in reversed(range(layers))]
    if min(widths) <= 0:
        raise UserError(
            f"dim: numeric networks of {layers} layers from {inputs} to {outputs} would have widths {widths}; "
            "expected a larger dim"
        )
    return widths


class NumericMLP(nn.Module):
    """Linear layers with a PReLU behind each, the last one included."""

    def __init__(self, inputs: int, outputs: int, layers: int = LAYERS, *, start: Start = "sane") -> None:
        super().__init__()
        widths = [inputs, *mlp_widths(inputs, outputs, layers)]
        self.mlp = nn.Sequential()
        for before, after in zip(widths, widths[1:], strict=False):
            # The released code has Dropout(0) between the two, which has no effect.
            self.mlp.extend([nn.Linear(before, after), nn.PReLU()])
        self.initialize(start)

    @torch.no_grad()
    def initialize(self, start: Start) -> None:
        """Draw initial values from the global generator.

        Args:
            start: "official": every parameter, biases and slopes included, from U(0, 1), which puts all places on one
                ray (docs/methods/cosmo.md); "sane": xavier-uniform weights, biases 0, slopes 0.25.
        """
        for module in self.mlp:
            if start == "official":
                for parameter in module.parameters():
                    nn.init.uniform_(parameter)
            # PReLU keeps its default slope of 0.25.
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, values_NF: Tensor) -> Tensor:
        """Map values [N, F] to vectors [N, D]."""
        return self.mlp(values_NF)


def scale_places(places_N2: NDArray[np.float64], kind: PlaceInput, *, reference_N2: NDArray[np.float64]) -> Tensor:
    """Turn latitudes and longitudes in degrees into the network's inputs [N, 2 or 3], float32.

    Args:
        kind: "raw" degrees; "standardized" by mean and deviation of `reference_N2`; "sphere": unit vectors, without a
            seam at 180 degrees.
        reference_N2: distinct places of the training images.
    """
    places_N2 = np.asarray(places_N2, dtype=np.float64).reshape(-1, 2)
    if kind == "sphere":
        latitude_N, longitude_N = np.deg2rad(places_N2).T
        x_N, y_N = np.cos(latitude_N) * np.cos(longitude_N), np.cos(latitude_N) * np.sin(longitude_N)
        values = np.stack([x_N, y_N, np.sin(latitude_N)], axis=1)
    elif kind == "standardized" and len(places_N2):
        deviation_2 = reference_N2.std(axis=0)
        # All cameras on one parallel: nothing to divide by. Rounding of the mean may leave 1e-17 instead of 0.
        values = (places_N2 - reference_N2.mean(axis=0)) / np.where(deviation_2 > _MIN_DEVIATION, deviation_2, 1.0)
    else:
        values = places_N2
    return torch.from_numpy(values.astype(np.float32))


def scale_hours(hours_N: NDArray[np.float64], kind: HourInput) -> Tensor:
    """Turn clock hours 0 to 23 into the network's inputs [N, 1 or 2], float32.

    Args:
        kind: "raw" hours; "scaled": h / 12 - 1; "circular": sine and cosine, so that 23 is beside 0.
    """
    hours_N = np.asarray(hours_N, dtype=np.float64).reshape(-1)
    if kind == "circular":
        angle_N = 2 * math.pi * hours_N / 24
        values = np.stack([np.sin(angle_N), np.cos(angle_N)], axis=1)
    else:
        values = (hours_N / 12 - 1 if kind == "scaled" else hours_N)[:, None]
    return torch.from_numpy(values.astype(np.float32))


def summarize_reference(places_R2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return two points of the same mean and deviation as `places_R2`: enough to standardize by, and no place."""
    mean_2, deviation_2 = places_R2.mean(axis=0), places_R2.std(axis=0)
    return np.stack([mean_2 - deviation_2, mean_2 + deviation_2])


class Relation(IntEnum):
    """Relations of the graph: what an image or taxon is linked to."""

    TIME = 0
    PARENT = 1
    LOCATION = 2
    SPECIES = 3


RELATIONS = {"species": Relation.SPECIES, "place": Relation.LOCATION, "time": Relation.TIME}
"""Relations of an image, by the name that users know."""


def build_score(name: str, dim: int, *, rows: int | None = None) -> Score:
    """Build the score of a name in `SCORES` of `foveate.species.scores`.

    Args:
        rows: of ConvE; other scores have none.

    Raises:
        UserError: there is no such score, or it has no such dimension.
    """
    module, _, attribute = SCORES[choose(name, SCORES, "score")].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    # Checked in the signature, because a custom score need not know an option of ConvE.
    options = {"rows": rows} if rows is not None and "rows" in inspect.signature(kind).parameters else {}
    return cast(Score, kind(dim, **options))


class ImageNetwork(nn.Module):
    """Images to vectors of the graph: an encoder, or features of a frozen one, and a linear layer.

    Args:
        features: width of the encoder's vector of an image, or of the features.
        encoder: trained along with the graph, on pixels or on what its frozen part made of them; None where features
            were computed before.
    """

    def __init__(self, features: int, dim: int, encoder: ImageEncoder | None = None) -> None:
        super().__init__()
        self.encoder: ImageEncoder | None = encoder
        self.fc = nn.Linear(features, dim)
        # Initialize only the weight, as the released code does; the bias keeps PyTorch's default.
        nn.init.xavier_uniform_(self.fc.weight)

    def features(self, inputs: Tensor) -> Tensor:
        """Return features [B, F] of pixels [B, 3, H, W], of an encoder's frozen features, or of features themselves."""
        return inputs if self.encoder is None else self.encoder.image_vectors(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return vectors [B, D] of images."""
        return self.fc(self.features(inputs))


class LinkModel(nn.Module):
    """Encoder, entity table, relations and numeric networks under one score.

    Args:
        image: inputs of images to vectors [B, D]; for the paper's encoders an `ImageNetwork`.
        num_entities: taxa, and labels without a taxon.
        targets: entity of each of the K classes, in the order of the answer's columns.
        dim: D.
        score: or its name in `SCORES` of `foveate.species.scores`.
        places_NF: scaled places that compete as tails; None or empty without that relation.
        hours_NF: scaled hours that compete as tails.
        start: see `NumericMLP.initialize`.
    """

    image: Any  # an `ImageNetwork`, or any module that ends with a linear layer `fc`

    def __init__(
        self,
        image: nn.Module,
        *,
        num_entities: int,
        targets: Sequence[int],
        dim: int,
        score: str | Score = "distmult",
        places_NF: Tensor | None = None,
        hours_NF: Tensor | None = None,
        start: Start = "sane",
    ) -> None:
        super().__init__()
        self.dim = dim
        self.image = image
        self.entities = nn.Embedding(num_entities, dim)
        self.relations = nn.Embedding(len(Relation), dim)
        nn.init.xavier_uniform_(self.entities.weight)
        nn.init.xavier_uniform_(self.relations.weight)
        self.score = build_score(score, dim) if isinstance(score, str) else score
        self.places = _build_numeric(places_NF, dim, start)
        self.hours = _build_numeric(hours_NF, dim, start)
        # These buffers are not persistent, because a checkpoint must not carry coordinates, and the config stores
        # classes by name.
        self.register_buffer("places_NF", places_NF, persistent=False)
        self.register_buffer("hours_NF", hours_NF, persistent=False)
        self.register_buffer("targets_K", torch.as_tensor(targets, dtype=torch.int64), persistent=False)

    @property
    def drops_last(self) -> bool:
        """See `Score`."""
        return self.score.drops_last

    def tails(self, relation: Relation) -> Tensor:
        """Return the vectors [N, D] of all candidates of a relation, with gradient.

        Raises:
            UserError: the model has no candidates of this relation.
        """
        if relation is Relation.SPECIES:
            return self.entities.weight[self.targets_K]
        if relation is Relation.PARENT:
            return self.entities.weight
        network, values = (
            (self.places, self.places_NF) if relation is Relation.LOCATION else (self.hours, self.hours_NF)
        )
        if network is None:
            raise UserError(f"relation '{relation.name.lower()}': this model was trained without it")
        # Encoded anew in each batch, so that the networks of places and hours get gradients from every candidate.
        return network(values)

    def heads(self, inputs: Tensor, relation: Relation) -> Tensor:
        """Return the vectors [B, D] of heads: of taxa by index for PARENT, of images otherwise."""
        return self.entities(inputs) if relation is Relation.PARENT else self.image(inputs)

    def forward(self, inputs: Tensor, relation: Relation = Relation.SPECIES) -> Tensor:
        """Return the scores [B, N] of all candidates."""
        return self.score_heads(self.heads(inputs, relation), relation)

    def score_heads(self, heads_BD: Tensor, relation: Relation) -> Tensor:
        """Return the scores [B, N] of all candidates for vectors of heads."""
        # A row for each head, though all are equal: its gradient is then summed in the order of the released code.
        rows_B = torch.full((len(heads_BD),), int(relation), device=heads_BD.device)
        return self.score(heads_BD, self.relations(rows_B), self.tails(relation))


def _build_numeric(values_NF: Tensor | None, dim: int, start: Start) -> NumericMLP | None:
    return None if values_NF is None or not len(values_NF) else NumericMLP(values_NF.shape[1], dim, start=start)


# Baselines of COSMO on the same inputs: a linear head (ERM), and a head that reads place and hour (MLP-concat).
#
# The third one, the linear probe, is solved: `foveate.training.linear_probe`.


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


# Folded head: species scores of a link model as one linear layer on the features of an image.


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
