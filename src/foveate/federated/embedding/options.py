"""Options of FedNE and its baselines, the schedule of its rounds, and the kinds of its messages; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from foveate.core.errors import UserError
from foveate.core.recipes import Settings, validate
from foveate.core.reference import REFERENCE, reference_values
from foveate.federated.messages import Message, MessageError
from foveate.federated.secure_sums import WEIGHTS, SumFormat

FEDNE, FEDAVG, FEDPROX, LOCAL, POOLED, EXACT = "fedne", "fedavg", "fedprox", "local", "global", "fedne_exact"
METHODS = {
    FEDNE: "one encoder averaged over clients, which repel one another through surrogates",
    FEDAVG: "one encoder averaged over clients, without repulsion between clients",
    FEDPROX: "as fedavg, with each client's encoder held near the common one",
    LOCAL: "an encoder per client, nothing is exchanged: the clients' maps are unrelated",
    POOLED: "all data in one place: not federated, an upper bound",
    EXACT: "as fedne with the others' map positions instead of surrogates: not private, simulation only",
}


MAX_SOLID_AXIS_POINTS = 12
"""Points per axis of a grid in three dimensions, by default."""


class EmbeddingOptions(Settings):
    """All that decides a run, besides the data and the number of clients."""

    method: Literal["fedne", "fedavg", "fedprox", "local", "global", "fedne_exact"] = Field(
        FEDNE, description="FedNE or one of its baselines"
    )
    dimensions: int = Field(
        2, ge=2, le=3, description="dimensions of the map; surrogates of more would need too many queries"
    )
    scale: Literal["none", "standard"] = Field(
        "none",
        description="standard: columns in units of their common standard deviation, from sums that clients send; "
        "rows are not sent",
    )
    neighbors: int = Field(7, ge=1, le=500, description="edges per point")
    negatives: int | Literal["all"] = Field(5, description='negative samples per edge, or "all" for the exact mean')
    kernel: Literal["shifted", "cauchy"] = Field(
        "shifted", description="similarity of two map positions", json_schema_extra=REFERENCE
    )
    # The public code's number for Dirichlet(0.5); for Dirichlet(0.1) it takes 500 to 600.
    rounds: int = Field(150, ge=1, le=100_000, description="rounds of training and averaging")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="of the clients' Adam")
    decay_at: tuple[float, ...] = Field((0.6,), description="shares of the rounds after which the learning rate falls")
    decay_factor: float = Field(0.1, gt=0, le=1, description="by which it falls")
    local_epochs: int = Field(1, ge=1, le=100, description="passes of a client over its edges per round")
    batch_points: int = Field(64, ge=1, description="a step has this number times `neighbors` edges")
    gradient_clip: float = Field(4.0, gt=0, description="largest value of a gradient, each clipped by itself")
    hidden: tuple[int, ...] = Field((100, 100, 100), description="widths of the encoder's hidden layers")
    # The published method fits networks. Values on the grid give the same maps in a fifteenth of the time
    # (docs/methods/fedne.md).
    surrogate: Literal["network", "network64", "grid"] = Field(
        "grid",
        description="what a client sends of its repulsion: a table of values, or a network (the default where "
        "grids are not common)",
    )
    # With surrogates from round 0 results were erratic (docs/methods/fedne.md).
    surrogate_start: float = Field(0.3, ge=0, le=1, description="share of the rounds before clients repel one another")
    refresh: int = Field(1, ge=1, description="rounds between new surrogates")
    grid: Literal["union", "own", "official"] = Field(
        "union",
        description="where surrogates are queried: one grid for all, one per client, or the public code's",
        json_schema_extra=reference_values("official"),
    )
    grid_step: float = Field(0.3, gt=0, description="distance of two queries")
    # A map can grow twentyfold within a round; with a fixed step, the number of queries grows with its square.
    max_axis_points: int = Field(
        28, ge=2, le=200, description="queries per axis at most, union grid (12 in 3-D tables)"
    )
    # A small map with a fixed step would have a handful of queries per axis.
    min_axis_points: int = Field(12, ge=2, le=200, description="queries per axis at least")
    max_points: int = Field(2000, ge=16, le=100_000, description="queries in all at most, own grid")
    drop: Literal["none", "farthest", "nearest"] = Field(
        "none",
        description="points left out of each query: the public code drops the 7 farthest",
        json_schema_extra=REFERENCE,
    )
    held_out: float = Field(0.1, ge=0, lt=1, description="share of the queries that a surrogate's fit is measured on")
    # A surrogate that does not fit pushes points anywhere; without it its client is only not felt.
    min_r2: float = Field(0.8, description="a surrogate below it, between its queries, is left out")
    # Surrogates reach .9, networks that alias .4 or less (docs/methods/fedne.md).
    min_gradient_cosine: float = Field(
        0.5,
        ge=-1,
        le=1,
        description="a surrogate whose gradient has a smaller mean cosine with the true one, between its queries, is "
        "left out",
    )
    warn_r2: float = Field(0.9, description="a surrogate below it is noted")
    # Off, although the published method mixes: in the study it helps on even digits only, and hurts on cells.
    mixing: bool = Field(False, description="train on mixtures of neighboring points, too")
    mixing_beta: float = Field(0.2, gt=0, description="of the Beta distribution that mixtures are drawn from")
    keep_self_edges: bool = Field(
        False, description="as the public code: a duplicate may be its own neighbor", json_schema_extra=REFERENCE
    )
    # A choice of this project: the published value is not known.
    proximal: float = Field(0.01, ge=0, description="mu of fedprox")
    participation: float = Field(1.0, gt=0, le=1, description="share of the clients that train in a round")
    aggregation: Literal["mean", "median", "trimmed_mean"] = Field(
        "mean", description="of the clients' weights, value by value; only the mean weights clients by their points"
    )
    trim: float = Field(0.2, ge=0, lt=0.5, description="share of the clients that trimmed_mean drops at either end")
    suspects: Literal["report", "exclude"] = Field("report", description="what becomes of anomalous clients")
    update_clip: float | None = Field(None, gt=0, description="norm to which a client clips its change of the weights")
    update_noise: float = Field(
        0.0, ge=0, description="standard deviation of the noise on that change, in units of the clip"
    )
    target_noise: float = Field(0.0, ge=0, description="standard deviation of the noise on each value of a field")
    precision: Literal["float32", "float64"] = Field("float32", description="of points, weights and map positions")
    seed: int = Field(0, ge=0, description="seed of all random numbers except privacy noise")

    @model_validator(mode="before")
    @classmethod
    def _choose_surrogate(cls, content: Any) -> Any:
        """A table of values needs one grid for all clients; elsewhere networks are the default."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        if "surrogate" not in content and content.get("grid", "union") != "union":
            content["surrogate"] = "network"
        # 12 to the third are about as many values as 2,000 queries; 28 would be 21,952 from each client in each round.
        if content.get("dimensions") == 3 and content.get("surrogate", "grid") == "grid":
            content.setdefault("max_axis_points", content.get("min_axis_points", MAX_SOLID_AXIS_POINTS))
        return content

    @model_validator(mode="after")
    def _fits(self) -> EmbeddingOptions:
        if self.negatives != "all" and self.negatives < 1:
            raise ValueError('negatives must be at least 1, or "all"')
        if any(not 0 <= share <= 1 for share in self.decay_at):
            raise ValueError("decay_at must have shares from 0 to 1")
        if any(width < 1 for width in self.hidden):
            raise ValueError("hidden must have widths of at least 1")
        if self.min_axis_points > self.max_axis_points:
            raise ValueError("min_axis_points must be at most max_axis_points")
        if self.update_noise and self.update_clip is None:
            raise ValueError("update_noise needs update_clip: noise hides only what is bounded")
        if self.scale != "none" and (self.update_noise or self.target_noise):
            raise ValueError("noise and scale: the sums of a common scale have no noise; scale before, by known units")
        if self.target_noise and (self.grid != "union" or self.method != FEDNE):
            raise ValueError("target_noise needs method 'fedne' and grid 'union'")
        if self.method in (LOCAL, POOLED) and (self.aggregation != "mean" or self.suspects != "report"):
            raise ValueError(f"method '{self.method}' averages nothing: aggregation and suspects have no effect on it")
        if self.method == FEDNE and self.surrogate == "grid" and self.grid != "union":
            raise ValueError("surrogate 'grid' needs grid 'union'")
        return self

    @property
    def is_noisy(self) -> bool:
        """Whether clients add noise that does not come from the seed; then no two runs are equal."""
        return bool(self.update_noise or self.target_noise)

    @property
    def hides_training(self) -> bool:
        """Whether clients send their weights with noise; then they report no losses either."""
        return bool(self.update_noise) and self.method not in (LOCAL, POOLED)

    @property
    def has_foreign_repulsion(self) -> bool:
        """Whether clients repel one another."""
        return self.method in (FEDNE, EXACT)


def read_options(content: dict[str, Any], *, where: str = "FedNE") -> EmbeddingOptions:
    """Check options.

    Raises:
        UserError: for an unknown name, or a value that is not allowed.
    """
    if "dimensions" in content and isinstance(content["dimensions"], int) and content["dimensions"] > 3:
        raise UserError(
            f"{where}: field 'dimensions' must be 2 or 3 (got {content['dimensions']}); the queries that a surrogate "
            "needs grow with the power of the dimensions"
        )
    return validate(EmbeddingOptions, content, where=where)


def request_options(request: Message) -> EmbeddingOptions:
    """Read the options that every request carries.

    Raises:
        MessageError: it carries none, or they do not fit.
    """
    try:
        return EmbeddingOptions.model_validate_json(request.options_text())
    except ValidationError as problem:
        raise MessageError(f"field 'options' does not fit: {problem}") from None


def decay_rounds(rounds: int, shares: Sequence[float]) -> list[int]:
    # `int` as in the public code; shares that fall together act once.
    """Rounds at which the learning rate falls: int(share * rounds), each once."""
    return sorted({int(share * rounds) for share in shares})


def learning_rate_of(round: int, *, rounds: int, base: float, shares: Sequence[float], factor: float = 0.1) -> float:
    """Learning rate of a round."""
    return base * factor ** sum(boundary <= round for boundary in decay_rounds(rounds, shares))


def first_surrogate_round(rounds: int, share: float) -> int:
    """First round in which clients repel one another."""
    return int(share * rounds)


def is_refreshed(round: int, *, start: int, refresh: int) -> bool:
    """Whether surrogates are fitted anew in this round."""
    return round >= start and (round - start) % refresh == 0


def count_participants(clients: int, share: float) -> int:
    """Number of clients that train in a round."""
    # Take at least one: a round without clients has nothing to average.
    return clients if share >= 1 else max(1, round(share * clients))


def draw_participants(clients: Sequence[int], share: float, generator: np.random.Generator) -> list[int]:
    """Draw the clients that train in a round: at least one, without replacement, ascending."""
    if share >= 1:
        return list(clients)
    count = count_participants(len(clients), share)
    return sorted(generator.choice(np.asarray(clients), size=count, replace=False).tolist())


ESTIMATOR_NAMES = {
    "dimensions": "n_components",
    "neighbors": "n_neighbors",
    "rounds": "n_rounds",
    "hidden": "hidden_layer_sizes",
    "precision": "dtype",
}
"""Parameters of the estimator whose names in `EmbeddingOptions` are others, by the field."""

POINTS = "query.points"
BOX = "query.box"
SURROGATE = "query.surrogate"
FIELD = "query.field"
POSITIONS = "query.positions"
TRAIN = "train"
# How the gradient of a surrogate compares with the true one, see `FieldQuality`. Measured in one process alone: exact
# values stay at a client that answers over a network.
GRADIENTS = ("gradient_cosine", "gradient_ratio")
TRAIN_SUMS = SumFormat({"encoder": WEIGHTS}, is_weighted=True, means=("attraction", "repulsion", "foreign"))
"""Format in which the answers to a training are added up."""

REMOTE_KINDS = (POINTS, BOX, SURROGATE, FIELD, TRAIN)
"""Requests that a client answers over a network: all but its map positions."""
