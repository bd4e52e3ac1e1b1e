"""Predicted values: absolute and squared errors, R2, and the weighted kappa of ordered classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError


def _checked(predicted_N: ArrayLike, truth_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    predicted, truth = np.asarray(predicted_N, dtype=np.float64), np.asarray(truth_N, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != truth.shape or not len(truth):
        raise UserError(
            f"predictions and truth: wrong shapes (got {list(predicted.shape)} and {list(truth.shape)}); expected two "
            "lists of the same length with at least one entry"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(truth).all()):
        raise UserError("predictions and truth: some values are NaN or infinite")
    return predicted, truth


def mean_absolute_error(predicted_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Return the mean absolute error, in the unit of the truth.

    Example:
        >>> mean_absolute_error([1.0, 4.0], [2.0, 2.0])
        1.5
    """
    predicted, truth = _checked(predicted_N, truth_N)
    return float(np.abs(predicted - truth).mean())


def root_mean_squared_error(predicted_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Return the root of the mean squared error, in the unit of the truth.

    Example:
        >>> round(root_mean_squared_error([1.0, 4.0], [2.0, 2.0]), 4)
        1.5811
    """
    predicted, truth = _checked(predicted_N, truth_N)
    return float(np.sqrt(np.square(predicted - truth).mean()))


def r2(predicted_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Return the coefficient of determination: 1 - squared errors / squared distances of the truth to its mean.

    1 is exact, 0 as good as the mean of these images, negative worse; NaN where all true values are equal.

    Example:
        >>> round(r2([2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0]), 4)
        0.9486
    """
    predicted, truth = _checked(predicted_N, truth_N)
    spread = float(np.square(truth - truth.mean()).sum())
    return 1 - float(np.square(predicted - truth).sum()) / spread if spread else float("nan")


def quadratic_kappa(predicted_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Return Cohen's kappa with quadratic weights: 1 = all right, 0 = chance; NaN if both are one and the same class.

    A mistake costs the square of its distance in classes, so that the neighboring class costs least.

    Args:
        predicted_N, truth_N: numbers of ordered classes.

    Source: Cohen 1968, "Weighted kappa".

    Example:
        >>> round(quadratic_kappa([0, 1, 2, 2], [0, 1, 1, 2]), 4)
        0.8
    """
    predicted, truth = _checked(predicted_N, truth_N)
    observed = float(np.square(predicted - truth).mean())
    # The mean over all pairs of a prediction and a truth: their squared distance if the two were independent.
    expected = float(predicted.var() + truth.var() + (predicted.mean() - truth.mean()) ** 2)
    return 1 - observed / expected if expected else float("nan")
