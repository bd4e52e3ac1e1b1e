"""Solve a linear probe without training: a head on features in memory, for classes, several labels, or values.

The loss of a linear head over fixed features is convex, so there is nothing to tune but its L2 penalty, which is chosen
by cross-validation. The same probe beside another method shows how much the features contribute by themselves.

| labels | head | the penalty is chosen by |
|---|---|---|
| a class per image | logistic regression over all classes | accuracy |
| several labels per image | a logistic regression per label, one penalty for all | cross-entropy |
| a value per image | ridge regression | R2 |

```python
probe = solve_head(features_ND, labels_N, num_classes=10)
probe.logits(features_ND).argmax(axis=1)
```
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.metrics.regression import r2

# Seven decades: below, the head is the class frequencies; above, separable features drive the weights to infinity.
CANDIDATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
# With one image of a class there is nothing to validate on: the middle of what is chosen on real features.
DEFAULT_C = 0.1
MAX_FOLDS = 5
_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class SolvedHead:
    """A linear head and how its penalty was chosen.

    Attributes:
        weight_KD, bias_K: for features as the network gives them.
        C: inverse of the L2 penalty, on centered features of mean variance 1; scikit-learn's.
        folds: of the cross-validation; 0 where C was set, or a class has a single image.
        accuracies: by candidate, the cross-validated score (accuracy, minus the cross-entropy of several labels, or
            R2); empty where folds is 0.
    """

    weight_KD: NDArray[np.float32]
    bias_K: NDArray[np.float32]
    C: float
    folds: int
    accuracies: dict[float, float]

    def logits(self, features_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map features [N, D] to logits [N, K]."""
        return features_ND @ self.weight_KD.T + self.bias_K

    @torch.no_grad()
    def copy_to(self, head: nn.Linear) -> None:
        """Set the weights of a head of the same shape."""
        head.weight.copy_(torch.from_numpy(self.weight_KD))
        head.bias.copy_(torch.from_numpy(self.bias_K))


def solve_head(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    *,
    num_classes: int,
    C: float | None = None,
    seed: int = 0,
) -> SolvedHead:
    """Fit a linear head to features by L-BFGS, its L2 penalty chosen by stratified cross-validation.

    Args:
        features_ND: of the training images.
        labels_N: class of each, 0 to num_classes - 1.
        C: inverse of the penalty (scikit-learn's); None chooses among `CANDIDATES` by accuracy, the strongest penalty
            among equals.
        seed: of the folds.

    Raises:
        UserError: a class has no image, or a feature is not finite.
    """
    counts_K = np.bincount(labels_N, minlength=num_classes)
    if counts_K.min() == 0:
        raise UserError(f"class {int(counts_K.argmin())} has no training image; a head cannot be solved for it")
    folds = min(MAX_FOLDS, int(counts_K.min())) if counts_K.min() > 1 else 0

    def split(features_ND: NDArray[np.float32]) -> Iterable[Fold]:
        from sklearn.model_selection import StratifiedKFold

        return StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed).split(features_ND, labels_N)

    def score(outputs_NK: NDArray[Any]) -> float:
        return float((outputs_NK.argmax(axis=1) == labels_N).mean())

    return _solve(features_ND, labels_N, _fit, C=C, folds=folds, split=split, score=score)


def solve_multi_label(
    features_ND: NDArray[np.float32], targets_NK: NDArray[np.float32], *, C: float | None = None, seed: int = 0
) -> SolvedHead:
    """Fit a logistic regression for each of K labels, with one L2 penalty for all.

    Args:
        features_ND: of the training images.
        targets_NK: 1 where an image has a label, else 0.
        C, seed: as of `solve_head`; chosen by the cross-entropy, which also counts labels that few images have.

    Raises:
        UserError: a label has no image, or a feature is not finite.
    """
    if not targets_NK.any(axis=0).all():
        label = int(np.flatnonzero(~targets_NK.any(axis=0))[0])
        raise UserError(f"label {label} has no training image; a head cannot be solved for it")

    def score(outputs_NK: NDArray[Any]) -> float:
        return -_cross_entropy(outputs_NK, targets_NK)

    folds = min(MAX_FOLDS, len(targets_NK)) if len(targets_NK) > 1 else 0
    split = _plain_folds(folds, seed)
    return _solve(features_ND, targets_NK, _fit_multi_label, C=C, folds=folds, split=split, score=score)


def solve_values(
    features_ND: NDArray[np.float32], targets_N: NDArray[np.float32], *, C: float | None = None, seed: int = 0
) -> SolvedHead:
    """Fit a ridge regression to one value per image.

    Args:
        features_ND: of the training images.
        targets_N: values; a scale near 1 makes penalties comparable.
        C, seed: as of `solve_head`; chosen by R2 over the held-out images of all folds.

    Raises:
        UserError: a feature is not finite.
    """
    folds = min(MAX_FOLDS, len(targets_N)) if len(targets_N) > 1 else 0

    def score(outputs_N1: NDArray[Any]) -> float:
        return r2(outputs_N1[:, 0], targets_N)

    split = _plain_folds(folds, seed)
    return _solve(features_ND, targets_N, _fit_ridge, C=C, folds=folds, split=split, score=score)


Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows to learn from, rows held out."""
Fit = Callable[[NDArray[np.float32], NDArray[Any], float], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Features, targets and C to weights [K, D] and biases [K]."""


def _plain_folds(folds: int, seed: int) -> Callable[[NDArray[np.float32]], Iterable[Fold]]:
    def split(features_ND: NDArray[np.float32]) -> Iterable[Fold]:
        from sklearn.model_selection import KFold

        return KFold(n_splits=folds, shuffle=True, random_state=seed).split(features_ND)

    return split


def _solve(
    features_ND: NDArray[np.float32],
    targets_N: NDArray[Any],
    fit: Fit,
    *,
    C: float | None,
    folds: int,
    split: Callable[[NDArray[np.float32]], Iterable[Fold]],
    score: Callable[[NDArray[Any]], float],
) -> SolvedHead:
    """Fit a head with the penalty that scores best on held-out images; 0 folds: with `C` or the default."""
    if not np.isfinite(features_ND).all():
        raise UserError("the network gives features that are not finite")
    # Penalties are comparable between networks only on features of one scale. One number for all features, not one for
    # each: with few images that blows up features that hardly vary (docs/methods/adapt/linear.md has the numbers).
    mean_D = features_ND.mean(axis=0)
    # Features that do not vary at all have no scale to divide by.
    scale = float(np.sqrt(features_ND.var(axis=0).mean())) or 1.0
    standard_ND = (features_ND - mean_D) / scale
    folds, accuracies = (0 if C is not None else folds), dict[float, float]()
    if folds:
        outputs: dict[float, NDArray[Any]] = {}
        cells = [(candidate, fold) for fold in split(standard_ND) for candidate in CANDIDATES]
        for candidate, (learn, held_out) in track(cells, description="choosing the penalty"):
            weight_KD, bias_K = fit(standard_ND[learn], targets_N[learn], candidate)
            output_nK = standard_ND[held_out] @ weight_KD.T + bias_K
            outputs.setdefault(candidate, np.zeros((len(targets_N), len(bias_K))))[held_out] = output_nK
        accuracies = {candidate: score(outputs_NK) for candidate, outputs_NK in outputs.items()}
    if C is None:
        # `max` returns the first of equals: the strongest penalty.
        C = max(CANDIDATES, key=lambda candidate: accuracies[candidate]) if accuracies else DEFAULT_C
    weight_KD, bias_K = fit(standard_ND, targets_N, C)
    # Centering and scaling are folded into the head, which then takes features as the network gives them.
    weight_KD = weight_KD / scale
    return SolvedHead(
        weight_KD.astype(np.float32), (bias_K - weight_KD @ mean_D).astype(np.float32), C, folds, accuracies
    )


def _fit(
    features_ND: NDArray[np.float32], labels_N: NDArray[np.int64], C: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights [K, D] and biases [K] of a logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(C=C, max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        # Separable classes under a weak penalty: accuracy has long stopped to change when the weights still grow.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features_ND, labels_N)
    weight_KD, bias_K = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(weight_KD) == 1:
        # Two classes have one row in scikit-learn; halves with opposite signs give the same difference of logits.
        weight_KD, bias_K = np.concatenate([-weight_KD, weight_KD]) / 2, np.concatenate([-bias_K, bias_K]) / 2
    return weight_KD, bias_K


def _cross_entropy(logits_NK: NDArray[Any], targets_NK: NDArray[Any]) -> float:
    """Return the mean binary cross-entropy over images and labels."""
    # log(1 + exp(x)) - y x, without overflow.
    return float((np.logaddexp(0.0, logits_NK) - targets_NK * logits_NK).mean())


def _fit_multi_label(
    features_ND: NDArray[np.float32], targets_NK: NDArray[np.float32], C: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights [K, D] and biases [K] of a logistic regression per label."""
    from scipy.optimize import minimize
    from scipy.special import expit

    # All labels in one problem: they share no parameter, so its solution is theirs, and a fold in which no image has a
    # label is no special case.
    features, targets = features_ND.astype(np.float64), targets_NK.astype(np.float64)
    shape = (targets.shape[1], features.shape[1] + 1)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights_KD, bias_K = flat.reshape(shape)[:, :-1], flat.reshape(shape)[:, -1]
        logits = features @ weights_KD.T + bias_K
        residual = C * (expit(logits) - targets)
        value = C * (np.logaddexp(0.0, logits) - targets * logits).sum() + 0.5 * np.square(weights_KD).sum()
        slope = np.concatenate([residual.T @ features + weights_KD, residual.sum(axis=0)[:, None]], axis=1)
        return float(value), slope.ravel()

    solved = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS})
    return solved.x.reshape(shape)[:, :-1], solved.x.reshape(shape)[:, -1]


def _fit_ridge(
    features_ND: NDArray[np.float32], targets_N: NDArray[np.float32], C: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights [1, D] and bias [1] of a ridge regression with penalty 1 / C and a free intercept."""
    from sklearn.linear_model import Ridge

    model: Any = Ridge(alpha=1 / C).fit(features_ND.astype(np.float64), targets_N.astype(np.float64))
    return np.asarray(model.coef_, np.float64)[None], np.array([model.intercept_], np.float64)
