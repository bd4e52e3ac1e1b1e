"""A client's own limits, whatever the server asks: minimum points of a cluster, maximum number of clusters.

A server that asks for as many clusters as there are points, with min_count 1, gets every row. Over a network these
limits are in the node's own configuration, which no server sees or sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings
from foveate.federated.messages import Message, MessageError

NODE_FIELDS = ("partition-id", "num-partitions", "data", "name", "min-count", "max-clusters")
"""Fields that a node's configuration may hold."""


class Limits(Settings):
    """A client's own limits."""

    min_count: int = Field(1, ge=1, description="answer nothing about groups of fewer points")
    max_clusters: int | None = Field(None, ge=1, description="answer no question for more clusters")

    @classmethod
    def of_node(cls, config: Mapping[str, Any]) -> Limits:
        """Read the limits in a node's configuration.

        Raises:
            UserError: an unknown field, or a limit that is not a whole number from 1.
        """
        # Unknown fields are refused, because one may be a misspelled limit, which would silently not hold.
        for name in config:
            choose(name, NODE_FIELDS, "field of the node's configuration")
        names = {name: name.replace("_", "-") for name in cls.model_fields}
        return cls(**{name: _read_count(config, field) for name, field in names.items() if field in config})

    def check(self, request: Message) -> None:
        """Raise MessageError if a request asks about fewer points, or for more clusters, than this client allows."""
        centers = request.arrays.get("centers")
        # Requests after the first carry the centers instead of K; their number is K.
        clusters = int(request.number("clusters")) if centers is None else len(centers)
        self.allow(int(request.number("min_count")), clusters)

    def allow(self, min_count: int, clusters: int) -> None:
        """Raise MessageError if a request with this `min_count`, for so many clusters, is not allowed."""
        if min_count < self.min_count:
            raise MessageError(f"asks with min_count {min_count}; this client's own min-count is {self.min_count}")
        if self.max_clusters is not None and clusters > self.max_clusters:
            raise MessageError(f"asks for {clusters} clusters; this client's own max-clusters is {self.max_clusters}")


def _read_count(config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"the node's configuration: '{name}' must be a whole number from 1 (got {value!r})")
    return value
