"""A common scale of all clients' columns, from sums: no row moves, and every client scales its own points.

Two questions: sums and number of points give the common mean; sums of squared differences from that mean give the
common standard deviation. In one question, as sums of squares about zero, a large mean would leave no digit of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from foveate.federated.clustering import protocol
from foveate.federated.clustering.distances import Floats
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.messages import Message
from foveate.federated.rounds import TooFewClientsError, Transport


@dataclass(frozen=True)
class Scaling:
    """Offset and divisor of each column, [D]."""

    offset_D: Floats
    scale_D: Floats

    @classmethod
    def of_points(cls, points_ND: Floats) -> Scaling:
        """Mean and standard deviation of points in one place; a constant column keeps its unit."""
        return cls._of_moments(points_ND.mean(0), ((points_ND - points_ND.mean(0)) ** 2).mean(0))

    @classmethod
    def _of_moments(cls, mean_D: Floats, variance_D: Floats) -> Scaling:
        return cls(mean_D, np.where(variance_D > 0, np.sqrt(variance_D), 1.0))

    def apply(self, points_ND: Floats) -> Floats:
        """Points in units of the common deviation."""
        return (points_ND - self.offset_D) / self.scale_D

    def undo(self, centers_KD: Floats) -> Floats:
        """Centers in the units of the data."""
        return centers_KD * self.scale_D + self.offset_D

    def add_to(self, request: Message) -> Message:
        """Return the request with offset and scale: a client keeps nothing between two requests."""
        arrays = {**request.arrays, "offset": self.offset_D, "scale": self.scale_D}
        return Message(request.kind, request.round, arrays, request.values)


def ask_scaling(
    transport: Transport, options: ClusteringOptions, min_clients: int, excluded: dict[int, str]
) -> Scaling:
    """Ask the clients for sums and return the common scale.

    Args:
        excluded: clients that do not answer, or have another number of columns than most, are added with the reason.

    Raises:
        TooFewClientsError: fewer than `min_clients` answered.
    """
    request = protocol.moments_request(options)
    result = transport.ask(request, protocol.moments_rule("sums"), min_clients=min_clients)
    excluded |= result.excluded
    answers = result.answers
    widths = Counter(len(answer.array("sums")) for answer in answers.values())
    if not widths:
        raise TooFewClientsError("no client answered")
    # Clients do not know each other; the width of most is the right one.
    usual = widths.most_common(1)[0][0]
    for client in [client for client, answer in answers.items() if len(answer.array("sums")) != usual]:
        width = len(answers.pop(client).array("sums"))
        excluded[client] = f"its data have {width} features; those of most clients have {usual}"
    mean_D = _total(answers, "sums")
    request = protocol.moments_request(options, center_D=mean_D)
    result = transport.ask(
        dict.fromkeys(answers, request), protocol.moments_rule("squares", usual), min_clients=min_clients
    )
    excluded |= result.excluded
    return Scaling._of_moments(mean_D, _total(result.answers, "squares"))


def _total(answers: dict[int, Message], name: str) -> Floats:
    """Mean of a sum over the points of all clients."""
    points = sum(answer.number("points") for answer in answers.values())
    return np.sum([answer.array(name) for answer in answers.values()], axis=0) / points
