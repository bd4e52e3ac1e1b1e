"""A client's own limits, whatever a server asks: points of a group, clusters, questions, partitions, epsilon.

A server that asks for as many clusters as there are points, with min_count 1, gets every row; one that may ask often
gets rows from differences. Over a network these limits are in the node's own configuration, which no server sees or
sets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, StrictBool, StrictInt

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings, validate
from foveate.federated import reasons
from foveate.federated.messages import Message
from foveate.federated.points import READ_FIELDS
from foveate.federated.reasons import Refusal

SAFE_MIN_COUNT = 10
"""Proposed `min_count`: a group of fewer points is nearly its points."""


class Limits(Settings):
    """A client's own limits; `None` in `min_count` = not chosen, which a networked client must."""

    min_count: StrictInt | None = Field(
        None, ge=1, description=f"do not release groups smaller than this; suggested: {SAFE_MIN_COUNT}"
    )
    max_clusters: StrictInt | None = Field(None, ge=1, description="refuse requests for more than this many clusters")
    max_questions: StrictInt = Field(
        500, ge=1, description="maximum number of requests about the same data, across runs"
    )
    # 1: where two partitions differ by one point, the difference of two sums is that point.
    max_partitions: StrictInt = Field(
        1, ge=1, description="maximum number of clusterings of the same data answered without noise, across runs"
    )
    max_epsilon: float = Field(
        8.0, gt=0, description="total privacy budget (epsilon, delta = 1e-5) for noisy answers about the same data"
    )
    align_columns: StrictBool = Field(False, description="sort columns by name before anything is computed")
    state: str | None = Field(
        None, description="folder of the client's log of questions; ~/.local/state/foveate/federated by default"
    )

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
    def of_node(cls, config: Mapping[str, Any]) -> Limits:
        """Read the limits in a node's configuration.

        Raises:
            UserError: an unknown field, a value out of bounds, or no `min-count`, which must be chosen.
        """
        # Unknown fields are refused, because one may be a misspelled limit, which would silently not hold.
        for name in config:
            choose(name, NODE_FIELDS, "field of the node's configuration")
        values = {name.replace("-", "_"): value for name, value in config.items() if name in _LIMIT_FIELDS}
        limits = validate(cls, values, where="the node's configuration")
        if limits.min_count is None:
            raise UserError(
                f"the node's configuration: field 'min-count' is missing; expected a whole number from 1 "
                f"({SAFE_MIN_COUNT} for sensitive data: with 1 single rows can leave this client)"
            )
        return limits

    def check(self, request: Message) -> None:
        """Raise Refusal if a request asks about fewer points, or for more clusters, than this client allows."""
        centers = request.arrays.get("centers")
        clusters = 0 if centers is None else len(centers)
        # The larger of both: a server may send centers that nobody asked for beside the number that is used.
        if centers is None or "clusters" in request.values:
            clusters = max(clusters, int(request.number("clusters")))
        self.allow(int(request.number("min_count")), clusters)

    def allow(self, min_count: int, clusters: int) -> None:
        """Raise Refusal if a request with this `min_count`, for so many clusters, is not allowed."""
        if min_count < self.smallest_group:
            raise Refusal(
                reasons.MIN_COUNT,
                f"asks with min_count {min_count}; this client's own min-count is {self.smallest_group}",
                count=self.smallest_group,
            )
        if self.max_clusters is not None and clusters > self.max_clusters:
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


_LIMIT_FIELDS = tuple(name.replace("_", "-") for name in Limits.model_fields)
NODE_FIELDS = ("partition-id", "num-partitions", "data", "name", *_LIMIT_FIELDS, *READ_FIELDS)
"""Fields that a node's configuration may hold."""
