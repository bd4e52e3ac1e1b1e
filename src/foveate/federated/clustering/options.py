"""Options of a clustering, declared once: the estimator's checks, the command line and the server's method use them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, Strict, field_validator, model_validator

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings
from foveate.core.reference import REFERENCE
from foveate.federated.clustering.grouping import QUANTILE, RADIUS_RULES, SEED_RULES


def _to_python(value: Any) -> Any:
    """Python's own numbers of NumPy's, which strict integers would refuse."""
    if isinstance(value, np.ndarray | list | tuple):
        return tuple(_to_python(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


# Strict, because a lax integer takes True for 1 and "5" for 5, which hides slips in scripts.
Count = Annotated[int, Strict(), BeforeValidator(_to_python)]
Number = Annotated[float, BeforeValidator(_to_python)]


class ClusteringOptions(Settings):
    """All options of a clustering, resolved for its method (see `methods.resolve`)."""

    clusters: Count = Field(ge=1, description="K, the number of groups of all clients together")
    method: str = Field(
        "consensus", description="method that merges centroids into K centers; an unknown name prints the list"
    )
    seed: Count = Field(0, ge=0, description="seed of all random numbers")
    local_clusters: int | tuple[int, ...] | None = Field(
        None, description="clusters that each client looks for: one number, one per client, or K by default"
    )
    client_init: Literal["kmeans++", "random", "awasthi_sheffet"] = Field(
        "kmeans++", description="start of a client's k-means"
    )
    # Several runs: a client whose k-means ends in a bad minimum sends centers that lie between clusters.
    n_init: Count = Field(5, ge=1, description="runs of a client's k-means; the best one counts")
    scale: Literal["none", "standard"] = Field(
        "none",
        description="standard: columns in units of their common standard deviation, from sums that clients send; "
        "rows are not sent",
    )
    spherical: bool = Field(False, description="cluster directions: rows are scaled to length 1")
    eliminate: Literal["flags", "drop", "none"] = Field(
        "flags", description="centroids that a client doubts are sent and marked, are not sent, or are not looked for"
    )
    radius: Annotated[float | str, BeforeValidator(_to_python)] = Field(
        "k_aware", description=f"grouping radius: a number, or {', '.join(RADIUS_RULES)}"
    )
    quantile: Number = Field(
        QUANTILE, ge=0, le=1, description="of the radius rule 'quantile'", json_schema_extra=REFERENCE
    )
    seeds: str = Field(
        "most_mass",
        description=f"order in which groups are formed: {', '.join(SEED_RULES)}",
        json_schema_extra=REFERENCE,
    )
    # Restarts compete with the radii because radii without them failed on groups of very different sizes.
    restarts: Count = Field(10, ge=0, description="weighted k-means++ starts of the server")
    refine_rounds: Count = Field(1, ge=0, description="number of refinement rounds with sums and counts; 0 = one-shot")
    # 1 merges nothing: in one process all data share the memory, and results should be those of the methods.
    min_count: Count = Field(
        1, ge=1, description="merge clusters with fewer points before sending; suggested for sensitive data: 10"
    )
    winsorize: Number | None = Field(
        None,
        gt=0,
        description="each client clips columns to the 5th and 95th percentile, widened by so many times their distance",
    )
    noise: Number = Field(
        0.0, ge=0, description="standard deviation z of the noise on counts, and of that on sums in units of the clip"
    )
    clip: Number | None = Field(None, gt=0, description="norm to which rows are clipped where there is noise")
    # Few: each step costs as much privacy as a round of refinement.
    noise_steps: Count = Field(5, ge=1, le=100, description="steps of a client's k-means with noise")
    kfed_seeds: Literal["all", "one"] = Field(
        "all", description="centroids of the first client that k-FED starts from", json_schema_extra=REFERENCE
    )
    kfed_steps: Literal["converged", "one"] = Field(
        "converged", description="steps of Lloyd in k-FED", json_schema_extra=REFERENCE
    )
    on_few_groups: Literal["raise", "return"] = Field(
        "raise", description="error, or fewer centers with a warning, where there are fewer groups than clusters"
    )
    # Other suspects stay in by default: a client that is the only one to hold a group of points looks suspicious, too.
    suspects: Literal["auto", "report", "exclude"] = Field(
        "auto",
        description="auto: clients with a column that is certainly in another unit are left out, and other anomalous "
        "ones are reported; report: all stay in; exclude: all are left out",
    )
    changed: dict[str, Any] = Field({}, exclude=True, description="options that differ from the method's defaults")

    @field_validator("local_clusters", mode="before")
    @classmethod
    def _check_local(cls, value: Any) -> Any:
        value = _to_python(value)
        counts = [] if value is None else value if isinstance(value, tuple) else (value,)
        if any(isinstance(count, bool) or not isinstance(count, int) or count < 1 for count in counts):
            raise ValueError("expected whole numbers from 1, one for all clients or one per client")
        return value

    @field_validator("radius")
    @classmethod
    def _check_radius(cls, value: float | str) -> float | str:
        if isinstance(value, str):
            return choose(value, RADIUS_RULES, "radius (or a number)")
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"expected a number from 0, or one of {', '.join(RADIUS_RULES)}")
        return value

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, value: str) -> str:
        return choose(value, SEED_RULES, "seeds")

    @model_validator(mode="after")
    def _check_noise(self) -> ClusteringOptions:
        if not self.noise:
            return self
        if self.clip is None:
            raise ValueError("noise needs clip: noise hides only what is bounded")
        if self.scale != "none":
            raise ValueError("noise and scale: the sums of a common scale have no noise; scale before, by known units")
        if self.eliminate != "none":
            raise ValueError("noise needs eliminate 'none': which centroids are doubted depends on single points")
        if self.radius == "fused":
            raise ValueError("noise needs another radius than 'fused', which depends on single points")
        if self.winsorize is not None:
            raise ValueError("noise and winsorize: percentiles depend on single points; clip bounds rows instead")
        return self

    def count_local(self, client: int) -> int:
        """Number of clusters that this client looks for.

        Raises:
            UserError: a list without an entry for the client.
        """
        if self.local_clusters is None:
            return self.clusters
        if isinstance(self.local_clusters, int):
            return self.local_clusters
        if not 0 <= client < len(self.local_clusters):
            raise UserError(f"local_clusters has {len(self.local_clusters)} entries, none for client {client}")
        return self.local_clusters[client]

    @property
    def method_title(self) -> str:
        """The method, and what was changed of it besides its rounds."""
        visible = {name: value for name, value in self.changed.items() if name != "refine_rounds"}
        return ", ".join([self.method, *(f"{name} {value}" for name, value in visible.items())])
