"""Link model: images, taxa, places and hours as nodes of one graph, and the score of every link between them.

Relations carry the numbers of the released code of COSMO. An image is no row of a table: its vector comes from the
encoder, so that images which were never seen have one. Places and hours come from numeric networks.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, cast

import torch
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.plugins import load_plugin
from foveate.species.numeric import NumericMLP, Start
from foveate.species.score import Score
from foveate.vision.encoder import ImageEncoder


class Relation(IntEnum):
    """Relations of the graph: what an image or taxon is linked to."""

    TIME = 0
    PARENT = 1
    LOCATION = 2
    SPECIES = 3


RELATIONS = {"species": Relation.SPECIES, "place": Relation.LOCATION, "time": Relation.TIME}
"""Relations of an image, by the name that users know."""


def build_score(name: str, dim: int, *, rows: int | None = None) -> Score:
    """Build the score of a name, a module of `foveate.species.scores`.

    Args:
        rows: of ConvE; other scores have none.

    Raises:
        UserError: there is no such score, or it has no such dimension.
    """
    kind = load_plugin("foveate.species.scores", name, "SCORE", label="score")
    # Checked in the signature, because a custom score need not know an option of ConvE.
    options = {"rows": rows} if rows is not None and "rows" in inspect.signature(kind).parameters else {}
    return cast(Score, kind(dim, **options))


class ImageNetwork(nn.Module):
    """Images to vectors of the graph: an encoder, or features of a frozen one, and a linear layer.

    Args:
        features: width of the encoder's vector of an image, or of the features.
        encoder: trained along with the graph; None where features were computed before.
    """

    def __init__(self, features: int, dim: int, encoder: ImageEncoder | None = None) -> None:
        super().__init__()
        self.encoder: ImageEncoder | None = encoder
        self.fc = nn.Linear(features, dim)
        # Initialize only the weight, as the released code does; the bias keeps PyTorch's default.
        nn.init.xavier_uniform_(self.fc.weight)

    def features(self, inputs: Tensor) -> Tensor:
        """Return features [B, F] of pixels [B, 3, H, W], or of features themselves."""
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
        score: or its name, a module of `foveate.species.scores`.
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
