"""Compare methods and models: agreement and ensembles of predictions, means of groups, the Pareto front.

M models, N samples, K classes; logits are [M, N, K]. Ties of classes go to the lowest class, ties of samples to the
lowest sample. Error consistency: Geirhos et al. 2020, arXiv 2006.16736, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, choose

Array = NDArray[np.float64]


def check_arrays(logits_MNK: ArrayLike, labels_N: ArrayLike | None = None) -> tuple[Array, NDArray[np.int64]]:
    """Convert logits and labels to arrays and check their shapes.

    Raises:
        UserError: for other shapes, NaN, or labels out of range.
    """
    logits = np.asarray(logits_MNK, dtype=np.float64)
    if logits.ndim != 3 or min(logits.shape) < 1:
        raise UserError(f"logits: wrong shape (got {list(logits.shape)}); expected [models, samples, classes]")
    if np.isnan(logits).any():
        raise UserError(f"logits: model {int(np.argwhere(np.isnan(logits))[0][0])} has NaN")
    labels = np.zeros(logits.shape[1], dtype=np.int64) if labels_N is None else np.asarray(labels_N)
    if labels.shape != (logits.shape[1],):
        raise UserError(
            f"labels: wrong shape (got {list(labels.shape)}); expected [{logits.shape[1]}], one for each sample"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[2]:
        raise UserError(
            f"labels: out of range (got {labels.min()} to {labels.max()}); expected 0 to {logits.shape[2] - 1}"
        )
    return logits, labels.astype(np.int64)


def agreement(logits_MNK: ArrayLike) -> Array:
    """Return the share of samples on which two models predict the same class, [M, M]."""
    logits, _ = check_arrays(logits_MNK)
    predicted = logits.argmax(axis=2)
    return (predicted[:, None] == predicted[None]).mean(axis=2)


def mean_disagreement(logits_MNK: ArrayLike) -> float:
    """Return 1 minus the agreement, averaged over all pairs of models."""
    alike = agreement(logits_MNK)
    pairs = np.triu_indices(len(alike), k=1)
    if not len(pairs[0]):
        raise UserError(f"disagreement needs at least two models (got {len(alike)})")
    return float(1 - alike[pairs].mean())


def error_consistency(logits_MNK: ArrayLike, labels_N: ArrayLike) -> Array:
    """Return Cohen's kappa of being right, [M, M]: (observed - expected) / (1 - expected); 1 if expected is 1.

    Example:
        >>> answers = np.array([[0, 1, 0, 0], [0, 1, 1, 1]])  # of two models; both are wrong about the second sample
        >>> error_consistency(np.eye(2)[answers], [0, 0, 1, 1]).tolist()
        [[1.0, 0.2], [0.2, 1.0]]
    """
    logits, labels = check_arrays(logits_MNK, labels_N)
    right = logits.argmax(axis=2) == labels
    accuracy = right.mean(axis=1)
    observed = (right[:, None] == right[None]).mean(axis=2)
    expected = accuracy[:, None] * accuracy + (1 - accuracy[:, None]) * (1 - accuracy)
    # Expected is 1 if both models are always right or always wrong: kappa is 0/0 there, and they agree.
    possible = 1 - expected
    return np.where(possible > 0, (observed - expected) / np.where(possible > 0, possible, 1), 1.0)


def confident_regions(logits_MNK: ArrayLike, labels_N: ArrayLike, *, num_samples: int, right: bool) -> dict[str, int]:
    """Count the regions of a Venn diagram of the models' most confident right (or least confident wrong) samples.

    Args:
        num_samples: per model, selected by confidence (largest probability) before right or wrong is looked at.
        right: the most confident ones that are right; False for the least confident ones that are wrong.

    Returns:
        "101" -> number of samples in the sets of models 0 and 2 and not of 1; empty regions are left out.
    """
    logits, labels = check_arrays(logits_MNK, labels_N)
    if not 1 <= num_samples <= logits.shape[1]:
        raise UserError(f"num_samples: expected 1 to {logits.shape[1]}, the number of samples (got {num_samples})")
    confidence = softmax(logits).max(axis=2)
    # Stable: of equal confidences the first samples, for every model the same.
    order = np.argsort(-confidence if right else confidence, axis=1, kind="stable")[:, :num_samples]
    selected = np.zeros(logits.shape[:2], dtype=bool)
    np.put_along_axis(selected, order, True, axis=1)
    selected &= (logits.argmax(axis=2) == labels) == right
    # Each column is a membership pattern; counting distinct columns gives all 2^M - 1 regions at once.
    regions, counts = np.unique(selected[:, selected.any(axis=0)].T, axis=0, return_counts=True)
    names = ["".join("1" if inside else "0" for inside in region) for region in regions]
    return dict(zip(names, counts.tolist(), strict=True))


def softmax(logits: Array) -> Array:
    """Return probabilities over the last axis."""
    # Shifted by the maximum, so that exp cannot overflow.
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _log_softmax(logits: Array) -> Array:
    # Not the logarithm of `softmax`: small probabilities underflow to 0 there, and their logarithms to -inf.
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _votes(logits: Array) -> Array:
    predicted = logits.argmax(axis=2)
    return (predicted[..., None] == np.arange(logits.shape[2])).sum(axis=0).astype(np.float64)


# Mean logits and mean log-probabilities predict the same classes: they differ by one constant per sample.
ENSEMBLES: dict[str, Callable[[Array], Array]] = {
    "logits": lambda logits: logits.mean(axis=0),
    "probabilities": lambda logits: softmax(logits).mean(axis=0),
    "log_probabilities": lambda logits: _log_softmax(logits).mean(axis=0),
    "votes": _votes,
}


def ensemble(logits_MNK: ArrayLike, *, rule: str = "logits") -> Array:
    """Return the scores [N, K] of an ensemble: mean logits, probabilities or log-probabilities, or votes.

    Raises:
        UserError: for another rule.
    """
    logits, _ = check_arrays(logits_MNK)
    return ENSEMBLES[choose(rule, ENSEMBLES, "rule of an ensemble")](logits)


def compare_ensembles(logits_MNK: ArrayLike, labels_N: ArrayLike) -> dict[str, Any]:
    """Compare ensembles with their members.

    Returns:
        Accuracy of each model and of each kind of ensemble, the share that any model has right, and the gain of mean
        logits over the worst, the mean and the best model.

    Example:
        >>> answers = np.array([[0, 1, 0, 0], [0, 1, 1, 1]])  # of two models, as the numbers of their classes
        >>> result = compare_ensembles(np.eye(2)[answers], [0, 0, 1, 1])
        >>> result["single"], result["any_right"]
        ([0.25, 0.75], 0.75)
    """
    logits, labels = check_arrays(logits_MNK, labels_N)
    single = (logits.argmax(axis=2) == labels).mean(axis=1)
    accuracy_by_rule = {
        rule: float((ensemble(logits, rule=rule).argmax(axis=1) == labels).mean()) for rule in ENSEMBLES
    }
    together = accuracy_by_rule["logits"]
    return {
        "single": single.tolist(),
        "ensemble": accuracy_by_rule,
        "any_right": float((logits.argmax(axis=2) == labels).any(axis=0).mean()),
        "gain": {
            "worst": together - float(single.min()),
            "mean": together - float(single.mean()),
            "best": together - float(single.max()),
        },
    }


def pairs(names: list[str], matrix_MM: ArrayLike) -> list[tuple[str, str, float]]:
    """Return the pairs of a symmetric matrix with their names, least similar first."""
    matrix = np.asarray(matrix_MM)
    named_pairs = [(names[i], names[j], float(matrix[i, j])) for i, j in combinations(range(len(names)), 2)]
    return sorted(named_pairs, key=lambda pair: pair[2])


# Compare many methods on many tasks: means of groups, spread, Pareto front, operating points.


def group_means(values: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the mean of each group's tasks, their mean ("mean of groups") and that of all tasks ("mean").

    Args:
        values: by task. groups: the tasks of each group; a task of no group counts in "mean" alone.

    Raises:
        UserError: when a group names a task without a value.
    """
    means: dict[str, float] = {}
    for group, tasks in groups.items():
        missing = [task for task in tasks if task not in values]
        if missing or not tasks:
            raise UserError(f"group '{group}': no value for task '{missing[0] if missing else ''}'")
        means[group] = float(np.mean([values[task] for task in tasks]))
    if groups:
        # Here each group has the same weight, whatever its number of tasks; in "mean" each task does.
        means["mean of groups"] = float(np.mean([means[group] for group in groups]))
    means["mean"] = float(np.mean(list(values.values())))
    return means


def relative_spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation over the mean."""
    if len(values) < 2:
        raise UserError(f"a spread needs at least two values (got {len(values)})")
    return float(np.std(values, ddof=1) / np.mean(values))


def argmax_last(values: Sequence[float]) -> int:
    """Return the index of the largest value, of equal ones the last: the selection rule of the study."""
    if not len(values):
        raise UserError("no values: nothing to choose from")
    array = np.asarray(values, dtype=np.float64)
    return int(np.flatnonzero(array == array.max())[-1])


def pareto_mask(costs: ArrayLike, values: ArrayLike) -> list[bool]:
    """Mark the Pareto front: no other point has at most the cost and at least the value and is better in one."""
    cost, value = np.asarray(costs, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if cost.shape != value.shape or cost.ndim != 1:
        raise UserError(
            f"costs and values: expected two lists of one length (got {list(cost.shape)} and {list(value.shape)})"
        )
    # All pairs at once; there are tens of methods.
    no_worse = (cost[:, None] <= cost) & (value[:, None] >= value)
    better = (cost[:, None] < cost) | (value[:, None] > value)
    beaten = np.asarray((no_worse & better).any(axis=0))
    return (~beaten).tolist()


def operating_points(
    alphas: Sequence[float], inside: Sequence[float], outside: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Return the points of a curve between two models that are best on in-distribution and on shifted data.

    Of equal ones the first, nearest to the original model. On test sets both are oracles.
    """
    if not len(alphas) == len(inside) == len(outside) or not len(alphas):
        raise UserError(
            f"a curve needs as many values as alphas (got {len(inside)} and {len(outside)} for {len(alphas)} alphas)"
        )
    points = {}
    for name, values in (("inside", inside), ("outside", outside)):
        index = int(np.argmax(np.asarray(values)))
        points[name] = {"alpha": alphas[index], "inside": inside[index], "outside": outside[index]}
    return points
