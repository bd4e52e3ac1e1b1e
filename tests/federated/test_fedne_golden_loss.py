"""The loss of a client, its gradients, and the equality with contrastive-ne."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedne_goldens import arrays, surrogate, tensor

from foveate.federated.embedding.surrogates import SurrogateSum
from foveate.federated.embedding.training import attraction, repulsion, sampled_losses, squared_distance

LOSS, CNE = arrays("loss"), arrays("cne_equality")
OWN = {"a": 0, "b": 2, "edge": 1}
PRECISIONS = {64: (torch.float64, {"rtol": 1e-10, "atol": 1e-12}), 32: (torch.float32, {"rtol": 2e-5, "atol": 2e-6})}


def others(case: str, dtype: torch.dtype) -> SurrogateSum:
    ratios = LOSS[f"{case}_ratios"]
    clients = [client for client in range(len(ratios)) if client != OWN[case]]
    return SurrogateSum(
        [surrogate(LOSS, f"{case}_S{client}") for client in clients], ratios[clients].tolist(), dtype=dtype
    )


@pytest.mark.parametrize("bits", PRECISIONS)
@pytest.mark.parametrize("case", OWN)
@pytest.mark.parametrize("mode", ["plain", "surrogate", "attraction_only", "repulsion_only", "surrogate_only"])
def test_losses_and_gradients(case: str, mode: str, bits: int) -> None:
    dtype, tolerance = PRECISIONS[bits]
    z = tensor(LOSS[f"{case}_Z"], dtype).requires_grad_()
    heads, tails, negatives = (torch.from_numpy(LOSS[f"{case}_{name}"]) for name in ("item", "neigh", "neg"))
    foreign = None if mode == "plain" else others(case, dtype)(z[heads])
    losses = sampled_losses(z, heads, tails, negatives, foreign_E=foreign)
    share = float(LOSS[f"{case}_ratios"][OWN[case]])
    by_mode = {
        "plain": lambda: losses.total(negatives=5),
        "surrogate": lambda: losses.total(negatives=5, share=share),
        "attraction_only": lambda: losses.attraction,
        "repulsion_only": lambda: losses.repulsion,
        "surrogate_only": lambda: losses.foreign,
    }
    loss = by_mode[mode]()
    loss.backward()
    assert loss.item() == pytest.approx(float(LOSS[f"{case}_{mode}_loss{bits}"]), **_named(tolerance))
    np.testing.assert_allclose(z.grad.numpy(), LOSS[f"{case}_{mode}_grad{bits}"], **tolerance)


def _named(tolerance: dict[str, float]) -> dict[str, float]:
    return {"rel": tolerance["rtol"], "abs": tolerance["atol"]}


@pytest.mark.parametrize("case", OWN)
def test_every_edge(case: str) -> None:
    z = tensor(LOSS[f"{case}_Z"])
    heads, tails, negatives = (torch.from_numpy(LOSS[f"{case}_{name}"]) for name in ("item", "neigh", "neg"))
    near = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(attraction(squared_distance(z[heads], z[tails])), LOSS[f"{case}_att"], **near)
    pushed = repulsion(squared_distance(z[heads].unsqueeze(1), z[negatives])).mean(dim=1)
    np.testing.assert_allclose(pushed, LOSS[f"{case}_rep"], **near)
    np.testing.assert_allclose(others(case, torch.float64)(z[heads]), LOSS[f"{case}_sur"], **near)


def test_beyond_the_clamp_no_pull_is_felt() -> None:
    far = torch.tensor([9997.0, 9999.0, 1e6], dtype=torch.float64, requires_grad=True)
    attraction(far).sum().backward()
    assert far.grad[0] > 0
    assert far.grad[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_it_is_six_times_that_of_contrastive_ne(case: str) -> None:
    z = tensor(CNE[f"{case}_features"]).requires_grad_()
    others_ = torch.from_numpy(CNE[f"{case}_neigh_inds"])
    losses = sampled_losses(z, torch.arange(len(others_)), others_[:, 0], others_[:, 1:])
    loss = losses.total(negatives=5) / 6
    loss.backward()
    assert loss.item() == pytest.approx(float(CNE[f"{case}_cne_loss"]), rel=1e-9)
    assert losses.attraction.item() == pytest.approx(float(CNE[f"{case}_att_mean"]), rel=1e-9)
    assert losses.repulsion.item() == pytest.approx(float(CNE[f"{case}_rep_mean"]), rel=1e-9)
    np.testing.assert_allclose(z.grad.numpy(), CNE[f"{case}_cne_grad"], rtol=1e-9, atol=1e-15)
