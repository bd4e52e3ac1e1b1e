"""Surrogates: encoding, network, grid, targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedne_goldens import arrays, surrogate, tensor

from foveate.federated.embedding.grids import official_grid, targets
from foveate.federated.embedding.networks import load_weights
from foveate.federated.embedding.surrogates import ARCHITECTURES, SurrogateNetwork, SurrogateSum, encode_positions

FORWARD, GRID, TARGETS = arrays("surrogate_forward"), arrays("surrogate_grid"), arrays("surrogate_targets")


@pytest.mark.parametrize("levels", [0, 1, 4, 6])
def test_positions_are_encoded_frequency_by_frequency(levels: int) -> None:
    found = encode_positions(tensor(FORWARD[f"L{levels}_z"]), levels=levels)
    np.testing.assert_allclose(found, FORWARD[f"L{levels}_pe"], rtol=1e-10, atol=1e-12)


def test_the_network_and_its_gradient() -> None:
    weights = surrogate(FORWARD, "mlp")
    network = SurrogateNetwork(ARCHITECTURES["network"], 2, torch.Generator().manual_seed(0), torch.float64)
    load_weights(network, weights)
    assert sum(parameter.numel() for parameter in network.parameters()) == 12_101
    for function in (network, SurrogateSum([weights], [1.0], dtype=torch.float64)):
        z = tensor(FORWARD["mlp_z"]).requires_grad_()
        found = function(z)
        found.sum().backward()
        np.testing.assert_allclose(found.detach(), FORWARD["mlp_out"], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(z.grad, FORWARD["mlp_dz"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["g0", "g1", "g2", "g3", "g4"])
def test_the_public_grid(case: str) -> None:
    stored = GRID[f"{case}_grid"]
    found = official_grid(GRID[f"{case}_Z"], step=float(GRID[f"{case}_step"])).points_Gd
    assert found.shape == stored.shape
    np.testing.assert_allclose(found, stored, atol=1e-5)


@pytest.mark.parametrize("case", ["t0", "t1", "t2", "t3", "t4", "t5"])
def test_targets(case: str) -> None:
    queries, local = tensor(TARGETS[f"{case}_Zq"]), tensor(TARGETS[f"{case}_Zl"])
    dropped = int(TARGETS[f"{case}_drop_farthest"])
    found = targets(queries, local, drop="farthest" if dropped else "none", dropped=dropped)
    np.testing.assert_allclose(found, TARGETS[f"{case}_y64"], rtol=1e-10)
    np.testing.assert_allclose(found, TARGETS[f"{case}_y_official32"], atol=5e-5)
    nearest = targets(queries, local, drop="nearest")
    np.testing.assert_allclose(nearest, TARGETS[f"{case}_y64_drop7nearest"], rtol=1e-10)
