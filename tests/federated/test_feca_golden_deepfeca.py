"""Pseudo-labels, the loss of frozen prototypes and its gradient, spherical k-means, against the float64 reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.federated.clustering.lloyd import lloyd, unit
from foveate.federated.deep.protocol import IGNORE, prototype_loss, pseudo_labels

ARRAYS = np.load(Path(__file__).resolve().parents[1] / "goldens" / "feca" / "deepfeca.npz")


def tensor(case: str, name: str) -> torch.Tensor:
    return torch.from_numpy(ARRAYS[f"{case}_{name}"])


@pytest.mark.parametrize("case", ["f0", "f1"])
def test_pseudo_labels(case: str) -> None:
    features, centers = tensor(case, "features"), tensor(case, "centres")
    for spherical, name in ((False, "euclidean"), (True, "spherical")):
        found = pseudo_labels(features, centers, spherical=spherical)
        np.testing.assert_array_equal(found, ARRAYS[f"{case}_pseudo_labels_{name}"])


@pytest.mark.parametrize("case", ["f0", "f1"])
def test_loss_and_gradient(case: str) -> None:
    features = tensor(case, "features").requires_grad_()
    centers = tensor(case, "centres").requires_grad_()
    loss = prototype_loss(features, centers, tensor(case, "pseudo_labels_spherical"))
    loss.backward()
    assert loss.item() == pytest.approx(float(ARRAYS[f"{case}_loss_tau0.1"]), rel=1e-9)
    np.testing.assert_allclose(features.grad, ARRAYS[f"{case}_dloss_dfeatures"], rtol=1e-9, atol=1e-12)
    assert centers.grad is None


@pytest.mark.parametrize("case", ["f0", "f1"])
def test_ignored_labels(case: str) -> None:
    labels = tensor(case, "labels_with_ignore")
    assert (labels == IGNORE).any()
    loss = prototype_loss(tensor(case, "features"), tensor(case, "centres"), labels)
    assert loss.item() == pytest.approx(float(ARRAYS[f"{case}_loss_ignore"]), rel=1e-9)


@pytest.mark.parametrize("case", ["f0", "f1"])
def test_spherical_kmeans(case: str) -> None:
    wanted = ARRAYS[f"{case}_spherical_kmeans_10it"]
    points = unit(ARRAYS[f"{case}_features"])
    found = lloyd(points, points[: len(wanted)], max_steps=10, spherical=True)
    np.testing.assert_allclose(found.centers, wanted, rtol=1e-9)
    np.testing.assert_array_equal(found.labels, ARRAYS[f"{case}_spherical_assign"])
