"""What a client refuses to say, whatever the server asks: its own least points of a cluster, its own most clusters.

A server that asks for as many clusters as there are points, with min_count 1, gets every row. Over a network these
limits stand in the node's own configuration, which no server sees or sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveate.core.errors import UserError, choose
from foveate.federated.messages import Message, MessageError

NODE_FIELDS = ("partition-id", "num-partitions", "data", "name", "min-count", "max-clusters")
"""All that a node's configuration may hold."""


@dataclass(frozen=True)
class Limits:
    """A client's own limits.

    Attributes:
        min_count: nothing is said of fewer points. max_clusters: the largest K that is answered; None = any.
    """

    min_count: int = 1
    max_clusters: int | None = None

    @classmethod
    def of_node(cls, config: Mapping[str, Any]) -> Limits:
        """The limits in a node's configuration.

        Raises:
            UserError: a field that is none of `NODE_FIELDS`, which might be a limit with a slip in it; a limit that is
                no whole number from 1.
        """
        for name in config:
            choose(name, NODE_FIELDS, "field of the node's configuration")
        most = _whole(config, "max-clusters") if "max-clusters" in config else None
        return cls(_whole(config, "min-count") if "min-count" in config else 1, most)

    def check(self, request: Message) -> None:
        """Returns where the question may be answered.

        Raises:
            MessageError: it asks of fewer points, or for more clusters, than this client allows.
        """
        centers = request.arrays.get("centers")
        clusters = int(request.number("clusters")) if centers is None else len(centers)
        self.allow(int(request.number("min_count")), clusters)

    def allow(self, asked: int, clusters: int) -> None:
        """Returns where a question with this `min_count`, for so many clusters, may be answered.

        Raises:
            MessageError: as `check`.
        """
        if asked < self.min_count:
            raise MessageError(f"asks with min_count {asked}; this client's own min-count is {self.min_count}")
        if self.max_clusters is not None and clusters > self.max_clusters:
            raise MessageError(f"asks for {clusters} clusters; this client's own max-clusters is {self.max_clusters}")


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"the node's configuration has {name} {value!r}; allowed are whole numbers from 1")
    return value
