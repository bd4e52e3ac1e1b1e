"""A client's own limits: what it refuses to say, whatever a server asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.federated.clustering import protocol
from foveate.federated.clustering.options import resolve
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import MessageError
from naming import raises_naming

POINTS = np.random.default_rng(0).normal(size=(50, 3))
CENTERS = POINTS[:20]


def requests(clusters: int, least: int) -> list:
    plan = resolve(clusters, eliminate="none", min_count=least)
    return [
        protocol.centroids_request(plan, 0),
        protocol.lloyd_request(CENTERS[:clusters], plan, 1),
        protocol.assign_request(CENTERS[:clusters], plan, 2),
    ]


def test_a_server_that_asks_for_every_row_is_refused() -> None:
    greedy = protocol.centroids_request(resolve(50, eliminate="none"), 0)
    sent = protocol.answer_centroids(POINTS, greedy, 0).array("centers")
    assert {row.tobytes() for row in sent} == {row.tobytes() for row in POINTS}
    for limits, words in (
        (ClientLimits(min_count=10), "asks with min_count 1; this client's own min-count is 10"),
        (ClientLimits(max_clusters=12), "asks for 50 clusters; this client's own max-clusters is 12"),
    ):
        with pytest.raises(MessageError, match=words):
            limits.check(greedy)
    # Nor does it help to send a center beside the number.
    hidden = replace(greedy, arrays={**greedy.arrays, "centers": POINTS[:1]})
    with raises_naming(MessageError, "asks for 50 clusters"):
        ClientLimits(max_clusters=12).check(hidden)


@pytest.mark.parametrize("place", range(3))
def test_limits_hold_for_every_question(place: int) -> None:
    limits = ClientLimits(min_count=10, max_clusters=12)
    limits.check(requests(12, 10)[place])
    limits.check(requests(3, 25)[place])
    with raises_naming(MessageError, "10"):
        limits.check(requests(12, 9)[place])
    with raises_naming(MessageError, "13"):
        limits.check(requests(13, 10)[place])
    ClientLimits().check(requests(20, 1)[place])


def test_limits_of_a_node() -> None:
    config = {"partition-id": 0, "num-partitions": 2, "data": "points.npz", "name": "north", "min-count": 10}
    assert ClientLimits.of_node(config) == ClientLimits(min_count=10)
    assert ClientLimits.of_node(config | {"max-clusters": 30, "max-partitions": 2}) == ClientLimits(
        min_count=10, max_clusters=30, max_partitions=2
    )
    with raises_naming(UserError, "min-count", "10"):
        ClientLimits.of_node({"partition-id": 0})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"min_count": 10}, "unknown field of the node's configuration 'min_count'.*min-count"),
        ({"min-count": 0}, "min_count.*1.*0"),
        ({"min-count": "10"}, "min_count.*'10'"),
        ({"max-clusters": True}, "max_clusters.*True"),
    ],
)
def test_a_slip_in_a_limit_is_no_limit_less(config: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ClientLimits.of_node(config)
