"""Noise of a client's answers and its cost: a pure function of the request and of the client's own limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.federated.clustering import protocol
from foveate.federated.clustering.methods import resolve
from foveate.federated.costs import PROTECTED, Cost, answer_cost
from foveate.federated.deep import options as features_kinds
from foveate.federated.embedding import options as map_kinds
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import Message
from foveate.federated.node import HELLO, KINDS
from foveate.federated.privacy import gaussian_cost
from foveate.federated.scaling import moments_request


def request_of(kind: str, **options: Any) -> Message:
    return Message(kind, 0, {}, {"options": EmbeddingOptions(**options).model_dump_json()})


@pytest.mark.parametrize("kind", PROTECTED)
def test_the_clients_own_noise_is_charged(kind: str) -> None:
    assert answer_cost(request_of(kind), ClientLimits(noise_multiplier=16.0)) == Cost(16.0, 1 / 512)
    assert answer_cost(request_of(kind), ClientLimits(noise_multiplier=2.0)) == Cost(2.0, 1 / 8)
    assert answer_cost(request_of(kind), ClientLimits(noise_multiplier=0.0)) == Cost()
    assert answer_cost(request_of(kind), None) == Cost()


def test_a_server_can_only_raise_the_noise() -> None:
    def cost(own: float, noise: float, **options: Any) -> Cost:
        request = request_of(map_kinds.TRAIN, update_clip=1.0, update_noise=noise, **options)
        return answer_cost(request, ClientLimits(noise_multiplier=own))

    assert cost(16.0, 8.0) == Cost(16.0, 1 / 512)
    assert cost(16.0, 64.0) == Cost(32.0, 1 / 2048)
    # The owner trusts the server: its noise is added, and the answers are counted.
    assert cost(0.0, 8.0) == Cost(4.0, 0.0)
    assert cost(0.0, 8.0, method="local") == Cost()


def test_every_kind_has_a_cost_or_is_counted() -> None:
    """A new kind needs a place in `PROTECTED`, or must reveal no more than the number of points and features."""
    clustering = resolve(3, noise=4.0, clip=1.0)
    made = {
        protocol.CENTROIDS: protocol.centroids_request(clustering, 0),
        protocol.LLOYD: protocol.lloyd_request(np.eye(3), clustering, 1),
        protocol.ASSIGN: protocol.assign_request(np.eye(3), clustering, 1),
    }
    costs = {kind: answer_cost(made.get(kind) or request_of(kind), ClientLimits()) for kind in KINDS if kind != HELLO}
    assert {kind for kind, cost in costs.items() if not cost.rho} == {
        protocol.MOMENTS,
        map_kinds.POINTS,
        features_kinds.SIZE,
    }
    assert all(cost.rho == pytest.approx(1 / (2 * cost.noise_multiplier**2)) for cost in costs.values() if cost.rho)


def test_sums_for_a_scale_have_no_noise_whatever_the_request_says() -> None:
    request = moments_request(10)
    noisy = Message(request.kind, 0, {}, {**request.values, "noise": 1.0, "noise_steps": 1})
    assert answer_cost(noisy, ClientLimits()) == Cost()


def test_no_noise_is_free_and_none_overflows() -> None:
    with pytest.raises(UserError, match="noise must be small enough"):
        gaussian_cost(2.0, 1e300)
    assert gaussian_cost(2.0, 1e160) > 0
    assert gaussian_cost(2.0, 1e-300) == float("inf")
