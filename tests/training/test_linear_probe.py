"""The solved linear probe: an oracle, the penalty's choice, and what a user gets from `adapt train --method linear`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from foveate.adapt.recipe import MIN_STEPS, AdaptTraining
from foveate.core.errors import UserError
from foveate.training.linear_probe import CANDIDATES, DEFAULT_C, solve_head, solve_multi_label, solve_values
from naming import raises_naming


def _digits(num_images: int = 400) -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return data.data[:num_images].astype(np.float32), data.target[:num_images].astype(np.int64)


@pytest.mark.parametrize("classes", [2, 10])
def test_answers_of_logistic_regression_on_scaled_features(classes: int) -> None:
    features, labels = _digits()
    features, labels = features[labels < classes], labels[labels < classes]
    standard = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0).mean())
    peer = LogisticRegression(C=0.1, max_iter=1000).fit(standard, labels)
    solved = solve_head(features, labels, num_classes=classes, C=0.1)
    softmax = torch.from_numpy(solved.logits(features)).softmax(dim=1).numpy()
    np.testing.assert_allclose(softmax, peer.predict_proba(standard), atol=1e-3)
    head = nn.Linear(features.shape[1], classes)
    solved.copy_to(head)
    np.testing.assert_allclose(
        head(torch.from_numpy(features)).detach().numpy(), solved.logits(features), rtol=1e-4, atol=1e-4
    )


def test_the_penalty_is_chosen_by_held_out_accuracy() -> None:
    features, labels = _digits()
    solved = solve_head(features, labels, num_classes=10, seed=3)
    assert solved.folds == 5
    assert list(solved.accuracies) == list(CANDIDATES)
    assert solved.accuracies[solved.C] == max(solved.accuracies.values())
    assert solved.C < max(CANDIDATES)
    again = solve_head(features, labels, num_classes=10, seed=3)
    assert (again.C, again.accuracies) == (solved.C, solved.accuracies)
    np.testing.assert_array_equal(again.weight_KD, solved.weight_KD)


def test_single_images_and_missing_classes() -> None:
    features, labels = _digits(10)
    single = solve_head(features, labels, num_classes=10)
    assert (single.C, single.folds, single.accuracies) == (DEFAULT_C, 0, {})
    with raises_naming(UserError, "10"):
        solve_head(features, labels, num_classes=11)
    features[0, 0] = np.nan
    with raises_naming(UserError, "finite"):
        solve_head(features, labels, num_classes=10)


def test_several_labels_are_a_logistic_regression_each() -> None:
    features, digits = _digits()
    targets = np.stack([digits % 2 == 0, digits > 4, digits == 3], axis=1).astype(np.float32)
    standard = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0).mean())
    solved = solve_multi_label(features, targets, C=0.1)
    sigmoid = torch.from_numpy(solved.logits(features)).sigmoid().numpy()
    for label in range(3):
        peer = LogisticRegression(C=0.1, max_iter=1000).fit(standard, targets[:, label])
        np.testing.assert_allclose(sigmoid[:, label], peer.predict_proba(standard)[:, 1], atol=5e-3)
    chosen = solve_multi_label(features, targets, seed=1)
    assert (chosen.folds, list(chosen.accuracies)) == (5, list(CANDIDATES))
    assert chosen.accuracies[chosen.C] == max(chosen.accuracies.values())
    with raises_naming(UserError, "label 1"):
        solve_multi_label(features, targets * [1, 0, 1])


def test_a_value_is_a_ridge_regression() -> None:
    features, digits = _digits()
    values = (digits - 4.5).astype(np.float32)
    standard = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0).mean())
    peer = Ridge(alpha=10.0).fit(standard.astype(np.float64), values)
    solved = solve_values(features, values, C=0.1)
    np.testing.assert_allclose(solved.logits(features)[:, 0], peer.predict(standard), atol=1e-3)
    chosen = solve_values(features, values, seed=1)
    assert (chosen.folds, list(chosen.accuracies)) == (5, list(CANDIDATES))
    assert 0.5 < chosen.accuracies[chosen.C] < 1
    assert solve_values(features[:1], values[:1]).C == DEFAULT_C


@pytest.mark.parametrize(
    ("num_images", "epochs", "steps"),
    [(100, None, 300), (64, None, 300), (10, None, 300), (6400, None, 5000), (100, 4, 6)],
)
def test_few_images_make_no_fewer_than_300_steps(num_images: int, epochs: int | None, steps: int) -> None:
    settings = AdaptTraining(epochs=epochs).resolve(num_images)
    assert settings.steps == steps
    assert epochs is not None or settings.steps >= MIN_STEPS
