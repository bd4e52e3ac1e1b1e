"""The settings of FedNE and its baselines: names, bounds, defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from foveate.core.errors import UserError
from foveate.core.recipes import Settings, validate

FEDNE, FEDAVG, FEDPROX, LOCAL, POOLED, EXACT = "fedne", "fedavg", "fedprox", "local", "global", "fedne_exact"
METHODS = {
    FEDNE: "one encoder averaged over clients, which feel one another through surrogates",
    FEDAVG: "one encoder averaged over clients, which do not feel one another",
    FEDPROX: "as fedavg, and a client's encoder is held near the common one",
    LOCAL: "an encoder per client, nothing is exchanged: the clients' maps have nothing to do with one another",
    POOLED: "all data in one place: not federated, the upper end",
    EXACT: "as fedne with the others' map positions instead of surrogates: not private, simulation only",
}


class EmbeddingOptions(Settings):
    """All that decides a run, besides the data and the number of clients."""

    method: Literal["fedne", "fedavg", "fedprox", "local", "global", "fedne_exact"] = Field(
        FEDNE, description="how the common encoder is trained"
    )
    dimensions: int = Field(2, ge=2, le=3, description="of the map; surrogates of more would need too many queries")
    neighbors: int = Field(7, ge=1, le=500)
    negatives: int | Literal["all"] = Field(5, description='samples per edge, or "all": the exact mean')
    kernel: Literal["shifted", "cauchy"] = "shifted"
    rounds: int = Field(150, ge=1, le=100_000, description="rounds of training and averaging")
    learning_rate: float = Field(1e-3, gt=0, le=1)
    decay_at: tuple[float, ...] = Field((0.6,), description="shares of the rounds after which the rate falls")
    decay_factor: float = Field(0.1, gt=0, le=1)
    local_epochs: int = Field(1, ge=1, le=100)
    batch_points: int = Field(64, ge=1, description="a step has this number times `neighbors` edges")
    gradient_clip: float = Field(4.0, gt=0)
    hidden: tuple[int, ...] = Field((100, 100, 100), description="widths of the encoder's hidden layers")
    surrogate: Literal["network", "network64", "grid"] = "network"
    surrogate_start: float = Field(0.3, ge=0, le=1, description="share of the rounds before clients feel one another")
    refresh: int = Field(1, ge=1, description="surrogates are made anew every so many rounds")
    grid: Literal["union", "own", "official"] = "union"
    grid_step: float = Field(0.3, gt=0)
    grid_most: int = Field(28, ge=2, le=200, description="points per axis, union grid")
    grid_fewest: int = Field(12, ge=2, le=200)
    max_points: int = Field(2000, ge=16, le=100_000, description="queries in all, own grid")
    drop: Literal["none", "farthest", "nearest"] = "none"
    held_out: float = Field(0.1, ge=0, lt=1, description="share of the queries that a surrogate's fit is checked on")
    least_r2: float = Field(0.8, description="a surrogate below it is left out")
    warn_r2: float = 0.9
    mixing: bool = False
    mixing_beta: float = Field(0.2, gt=0)
    keep_self_edges: bool = False
    proximal: float = Field(0.01, ge=0, description="mu of fedprox")
    participation: float = Field(1.0, gt=0, le=1, description="share of the clients that train in a round")
    aggregation: Literal["mean", "median", "trimmed_mean"] = Field(
        "mean", description="of the clients' weights, number by number; only the mean weighs clients by their points"
    )
    trim: float = Field(0.2, ge=0, lt=0.5, description="share of the clients that trimmed_mean drops at either end")
    suspects: Literal["report", "exclude"] = Field("report", description="what becomes of clients that are odd")
    update_clip: float | None = Field(None, gt=0, description="longest change of the weights that a client sends")
    update_noise: float = Field(0.0, ge=0, description="standard deviation of the noise on it, in units of the clip")
    target_noise: float = Field(0.0, ge=0, description="standard deviation of the noise on each value of a field")
    precision: Literal["float32", "float64"] = "float32"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> EmbeddingOptions:
        if self.negatives != "all" and self.negatives < 1:
            raise ValueError('negatives: at least 1, or "all"')
        if any(not 0 <= share <= 1 for share in self.decay_at):
            raise ValueError("decay_at: shares from 0 to 1")
        if any(width < 1 for width in self.hidden):
            raise ValueError("hidden: widths of at least 1")
        if self.grid_fewest > self.grid_most:
            raise ValueError("grid_fewest is larger than grid_most")
        if self.update_noise and self.update_clip is None:
            raise ValueError("update_noise needs update_clip: noise hides only what is bounded")
        if self.target_noise and (self.grid != "union" or self.method != FEDNE):
            raise ValueError("target_noise needs method 'fedne' and grid 'union'")
        if self.method in (LOCAL, POOLED) and (self.aggregation != "mean" or self.suspects != "report"):
            raise ValueError(f"method '{self.method}' averages nothing: aggregation and suspects have no effect on it")
        if self.method == FEDNE and self.surrogate == "grid" and (self.grid != "union" or self.dimensions != 2):
            raise ValueError("surrogate 'grid' needs grid 'union' and a map of two dimensions")
        return self

    @property
    def is_noisy(self) -> bool:
        """Whether what clients send carries noise from outside the seed; then no run equals another."""
        return bool(self.update_noise or self.target_noise)

    @property
    def hides_training(self) -> bool:
        """Whether clients send their weights with noise; then they tell nothing else of their training."""
        return bool(self.update_noise) and self.method not in (LOCAL, POOLED)

    @property
    def feels_others(self) -> bool:
        """Whether clients feel one another at all."""
        return self.method in (FEDNE, EXACT)


def options_of(content: dict[str, Any], *, where: str = "FedNE") -> EmbeddingOptions:
    """Checked options.

    Raises:
        UserError: for an unknown name, or a value that is not allowed.
    """
    if "dimensions" in content and isinstance(content["dimensions"], int) and content["dimensions"] > 3:
        raise UserError(
            f"{where}: {content['dimensions']} dimensions: allowed are 2 and 3; the queries that a surrogate needs "
            "grow with the power of the dimensions"
        )
    return validate(EmbeddingOptions, content, where=where)


def decay_rounds(rounds: int, shares: Sequence[float]) -> list[int]:
    """Rounds at which the rate falls: int(share * rounds); those that fall together are one."""
    return sorted({int(share * rounds) for share in shares})


def rate_of(round_: int, *, rounds: int, base: float, shares: Sequence[float], factor: float = 0.1) -> float:
    """The learning rate of a round."""
    return base * factor ** sum(boundary <= round_ for boundary in decay_rounds(rounds, shares))


def first_surrogate_round(rounds: int, share: float) -> int:
    """The first round in which clients feel one another."""
    return int(share * rounds)


def is_refreshed(round_: int, *, start: int, refresh: int) -> bool:
    """Whether surrogates are made anew in this round."""
    return round_ >= start and (round_ - start) % refresh == 0


def participants(clients: Sequence[int], share: float, generator: np.random.Generator) -> list[int]:
    """The clients that train in a round: at least one, drawn without replacement, ascending."""
    if share >= 1:
        return list(clients)
    count = max(1, round(share * len(clients)))
    return sorted(generator.choice(np.asarray(clients), size=count, replace=False).tolist())
