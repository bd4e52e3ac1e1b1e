"""Solve a linear probe without training: logistic regression on features in memory.

The loss of a linear head over fixed features is convex, so there is nothing to tune but its L2 penalty, which is chosen
by cross-validation. The same probe beside another method shows how much the features contribute by themselves.

```python
probe = solve_head(features_ND, labels_N, num_classes=10)
probe.logits(features_ND).argmax(axis=1)
```
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveate.core.errors import UserError
from foveate.core.progress import track

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
        accuracies: by candidate, the cross-validated accuracy; empty where folds is 0.
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
    if not np.isfinite(features_ND).all():
        raise UserError("the network gives features that are not finite")
    # Penalties are comparable between networks only on features of one scale. One number for all features, not one for
    # each: with few images that blows up features that hardly vary (docs/methods/adapt/linear.md has the numbers).
    mean_D = features_ND.mean(axis=0)
    # Features that do not vary at all have no scale to divide by.
    scale = float(np.sqrt(features_ND.var(axis=0).mean())) or 1.0
    standard_ND = (features_ND - mean_D) / scale
    folds, accuracies = 0, dict[float, float]()
    if C is None:
        folds = min(MAX_FOLDS, int(counts_K.min())) if counts_K.min() > 1 else 0
        accuracies = _cross_validate(standard_ND, labels_N, folds, seed) if folds else {}
        # `max` returns the first of equals: the strongest penalty.
        C = max(CANDIDATES, key=lambda candidate: accuracies[candidate]) if accuracies else DEFAULT_C
    weight_KD, bias_K = _fit(standard_ND, labels_N, C)
    # Centering and scaling are folded into the head, which then takes features as the network gives them.
    weight_KD = weight_KD / scale
    return SolvedHead(
        weight_KD.astype(np.float32), (bias_K - weight_KD @ mean_D).astype(np.float32), C, folds, accuracies
    )


def _cross_validate(
    features_ND: NDArray[np.float32], labels_N: NDArray[np.int64], folds: int, seed: int
) -> dict[float, float]:
    """Return the accuracy of each candidate over all held-out folds."""
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    correct = dict.fromkeys(CANDIDATES, 0)
    cells = [(C, fold) for fold in splitter.split(features_ND, labels_N) for C in CANDIDATES]
    for C, (learn, held_out) in track(cells, description="choosing the penalty"):
        weight_KD, bias_K = _fit(features_ND[learn], labels_N[learn], C)
        predicted_N = (features_ND[held_out] @ weight_KD.T + bias_K).argmax(axis=1)
        correct[C] += int((predicted_N == labels_N[held_out]).sum())
    return {C: count / len(labels_N) for C, count in correct.items()}


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
