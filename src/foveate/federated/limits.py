"""A client's own limits, whatever a server asks.

A server that asks for as many clusters as there are points, with min_count 1, gets every row; one that may ask often
gets rows from differences. Over a network these limits are in the client's own policy or in its node's configuration,
which no request sees or sets. What was answered is counted in the ledger (`foveate.federated.ledger`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictBool, StrictInt, field_validator

from foveate.core.errors import UserError, choose
from foveate.core.recipes import validate
from foveate.federated import reasons
from foveate.federated.bounds import RequestBounds, read_count
from foveate.federated.messages import Message
from foveate.federated.points import READ_FIELDS
from foveate.federated.reasons import Refusal
from foveate.federated.scaling import MOMENTS

SAFE_MIN_COUNT = 10
"""Proposed `min_count`: a group of fewer points is nearly its points."""
MIN_NOISE_MULTIPLIER = 1e-3
"""Smallest noise that is any: an answer with less would cost an epsilon of half a million."""
SAFE_WINSORIZE = 3.0
"""`winsorize` of a clustering over a network, at the server and at its clients, unless both are told otherwise."""
JOBS = ("cluster", "embed", "features")
CLUSTER, EMBED, FEATURES = JOBS
POLICY = "policy"
"""Field of a node's configuration that names the file of its limits."""


class ClientLimits(RequestBounds):
    """A client's own limits; `None` in `min_count` = not chosen, which a networked client must."""

    # Allow only clustering by default: in the other two jobs a dishonest server can read rows, whatever min_count is.
    jobs: tuple[Literal["cluster", "embed", "features"], ...] = Field(
        (CLUSTER,),
        min_length=1,
        description="jobs that this client answers: cluster, embed, features; embed and features are answered with "
        "noise, unless noise_multiplier is 0: then a server that departs from the protocol can read rows of the data",
    )
    min_count: StrictInt | None = Field(
        None, ge=1, description=f"do not release groups smaller than this; suggested: {SAFE_MIN_COUNT}"
    )
    max_questions: StrictInt = Field(
        500, ge=1, description="maximum number of requests about the same data, across runs"
    )
    # 1: where two partitions differ by one point, the difference of two sums is that point.
    max_partitions: StrictInt = Field(
        1, ge=1, description="maximum number of clusterings of the same data answered without noise, across runs"
    )
    # A scale needs two questions, one of either kind; with a second scale, differences of sums would be outliers.
    max_moments: StrictInt = Field(
        1, ge=1, description="maximum number of different sums for a common scale of the same data, across runs"
    )
    # A map of default rounds trains 150 times, and asks for some hundred boxes and fields; a resumed one repeats some.
    max_trainings: StrictInt = Field(
        200,
        ge=1,
        description="maximum number of trainings, of boxes and of fields of the same data answered without noise, each "
        "counted by itself across runs",
    )
    # A failure is an answer of one bit: with many a server could search for a value.
    max_failures: StrictInt = Field(
        5, ge=1, description="maximum number of requests that failed because of the same data, across runs"
    )
    max_epsilon: float = Field(
        8.0,
        gt=0,
        description="total privacy budget (epsilon, delta = 1e-5) for noisy answers about the same data, over all jobs",
    )
    # The costs of some 450 answers add up to the default budget: a map of 150 rounds with three questions each.
    noise_multiplier: float = Field(
        15.0,
        ge=0,
        # More noise would be free, and less would have no finite cost.
        le=1e6,
        allow_inf_nan=False,
        description="smallest noise on every answer of the jobs embed and features, in units of the most that one row "
        "can change the answer; 0 = none, for a server that is trusted with the data",
    )
    update_clip: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="largest change of an encoder's weights, as a norm, that one round of training sends",
    )
    winsorize: float = Field(
        SAFE_WINSORIZE,
        ge=0,
        allow_inf_nan=False,
        description="refuse clusterings with another winsorize than this; 0 = only those without",
    )
    scale: Literal["none", "standard"] = Field(
        "none",
        description="standard: send sums for a common scale of the columns, and accept that scale; none: refuse both",
    )
    secure_aggregation: Literal["allowed", "required"] = Field(
        "allowed",
        description="required: send sums for a scale, sums of a refinement and weights only under secure aggregation; "
        "allowed: also as they are",
    )
    align_columns: StrictBool = Field(False, description="sort columns by name before anything is computed")
    state: str | None = Field(
        None,
        description="folder of the client's log of questions; by default FOLDER/state of `foveate federated client "
        "--folder FOLDER`, and ~/.local/state/foveate/federated of a node that Flower's own command starts",
    )

    @field_validator("jobs", mode="before")
    @classmethod
    def _read_jobs(cls, value: Any) -> Any:
        # Flower's configurations hold single values only, so a list arrives as one text.
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value
        names = [name.strip() if isinstance(name, str) else name for name in names]
        # DeepFeCA is the method of the job `features`; both names are in use for it.
        return tuple(FEATURES if name == "deep" else choose(str(name), JOBS, "job") for name in names)

    @property
    def smallest_group(self) -> int:
        """The smallest group that is answered about."""
        return self.min_count or 1

    @property
    def state_folder(self) -> Path:
        """Folder of the log and of the ledger; by default common to all nodes of a user: equal data have one ledger."""
        if self.state is not None:
            return Path(self.state)
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "foveate" / "federated"

    @classmethod
    def of_node(cls, config: Mapping[str, Any]) -> ClientLimits:
        """Read the limits in a node's configuration, in which `policy.expand` has put those of a policy.

        Raises:
            UserError: an unknown field, a value out of bounds, or no `min-count`, which must be chosen.
        """
        # Unknown fields are refused, because one may be a misspelled limit, which would silently not hold.
        for name in config:
            choose(name, (POLICY, *NODE_FIELDS), "field of the node's configuration")
        # A policy that nobody has read would silently not hold.
        assert POLICY not in config, "expanded by foveate.federated.policy"
        values = {name.replace("-", "_"): value for name, value in config.items() if name in _LIMIT_FIELDS}
        limits = validate(cls, values, where="the node's configuration")
        if limits.min_count is None:
            raise UserError(
                f"the node's configuration: field 'min-count' is missing; expected a whole number from 1 "
                f"({SAFE_MIN_COUNT} for sensitive data: with 1 single rows can leave this client), or a '{POLICY}'"
            )
        return limits

    def allow_job(self, job: str) -> None:
        """Raise Refusal for a job that the owner has not named."""
        if job not in self.jobs:
            raise Refusal(
                reasons.JOB,
                f"asks for the job {job}; this client answers {', '.join(self.jobs)} (its own jobs; the others can "
                "cost rows of the data)",
            )

    def complete(self, request: Message) -> Message:
        """Return a request with what the client itself decides about it.

        Jobs without an own `winsorize` get the client's: sums of all points as they are, beside those of a clustering,
        would differ from these by the outlying rows.
        """
        if request.kind != MOMENTS or "winsorize" in request.values or not self.winsorize:
            return request
        if not set(self.jobs) - {CLUSTER}:
            return request
        return replace(request, values={**request.values, "winsorize": self.winsorize})

    @field_validator("noise_multiplier")
    @classmethod
    def _check_noise_multiplier(cls, value: float) -> float:
        if 0 < value < MIN_NOISE_MULTIPLIER:
            raise ValueError(f"expected 0 for none, or at least {MIN_NOISE_MULTIPLIER:g}")
        return value

    def check_scale(self, request: Message) -> None:
        """Raise Refusal for a request that is about a common scale, or brings one, where the owner wants none."""
        if self.scale == "none" and (request.kind == MOMENTS or {"offset", "scale"} & set(request.arrays)):
            raise Refusal(reasons.SCALE, "is about a common scale of the columns; this client's own scale is 'none'")

    def check_winsorize(self, request: Message) -> None:
        """Raise Refusal for a clustering with another `winsorize` than this client's.

        Sums under two different values differ only by the outlying rows, which would reveal these.
        """
        value = request.values.get("winsorize", 0.0)
        # Percentiles have no noise, so a request with noise has no winsorize; its answers have a budget instead.
        if request.kind != MOMENTS and request.values.get("noise") and value == 0:
            return
        if value != self.winsorize:
            raise Refusal(
                reasons.WINSORIZE,
                f"asks with winsorize {value or 'none'}; this client's own is {self.winsorize or 'none'}",
            )

    def check(self, request: Message) -> None:
        """Raise Refusal if a request asks about fewer points, or for more clusters, than this client allows."""
        centers = request.arrays.get("centers")
        clusters = 0 if centers is None else len(centers)
        # Take the larger of the two: a server may add centers that the request does not need, beside the number it
        # uses.
        if centers is None or "clusters" in request.values:
            clusters = max(clusters, read_count(request, "clusters"))
        self.allow(read_count(request, "min_count"), clusters)

    def allow(self, min_count: int, clusters: int) -> None:
        """Raise Refusal if a request with this `min_count`, for so many clusters, is not allowed."""
        if min_count < self.smallest_group:
            raise Refusal(
                reasons.MIN_COUNT,
                f"asks with min_count {min_count}; this client's own min-count is {self.smallest_group}",
                count=self.smallest_group,
            )
        if clusters > self.max_clusters:
            raise Refusal(
                reasons.MAX_CLUSTERS,
                f"asks for {clusters} clusters; this client's own max-clusters is {self.max_clusters}",
                count=self.max_clusters,
            )

    def need_points(self, points: int) -> None:
        """Raise Refusal for a client of fewer points than its own `min_count`."""
        if points < self.smallest_group:
            raise Refusal(
                reasons.TOO_FEW_POINTS,
                f"{points} points are fewer than this client's own min-count {self.smallest_group}: nothing is sent",
                count=self.smallest_group,
            )


_LIMIT_FIELDS = tuple(name.replace("_", "-") for name in ClientLimits.model_fields)
NODE_FIELDS = ("partition-id", "num-partitions", "data", "name", *_LIMIT_FIELDS, *READ_FIELDS)
"""Fields that a node's configuration may hold, besides the policy that holds the limits instead."""
