"""Measures of the study `petl`: disagreement of models, gain of ensembles, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.core.seeds import generator
from foveate.metrics.agreement import agreement, error_consistency

Logits = NDArray[np.float32]
_RESAMPLES = 1000


def accuracy(logits_NK: Logits, labels_N: NDArray[np.int64]) -> float:
    """Return the accuracy."""
    return float((logits_NK.argmax(axis=1) == labels_N).mean())


def alike(logits: Sequence[tuple[Logits, Logits]], labels_N: NDArray[np.int64]) -> dict[str, float]:
    """Average over pairs of models: disagreement, the minimum that accuracies force, error consistency.

    Two models that are right on shares a and b of the samples differ on at least |a - b| of them.
    """
    sums: dict[str, list[float]] = {"disagree": [], "forced": [], "kappa": []}
    for first, other in logits:
        both = np.stack([first, other])
        sums["disagree"].append(1 - float(agreement(both)[0, 1]))
        sums["forced"].append(abs(accuracy(first, labels_N) - accuracy(other, labels_N)))
        sums["kappa"].append(float(error_consistency(both, labels_N)[0, 1]))
    return {name: float(np.mean(values)) for name, values in sums.items()}


def together(groups: Sequence[Sequence[Logits]], labels_N: NDArray[np.int64]) -> dict[str, float]:
    """Average over groups of models: accuracy of the mean logits, and its gain over the mean member."""
    accuracies, gain = [], []
    for group in groups:
        # Mean logits, because mean probabilities were up to a point worse in the reference measurement.
        accuracies.append(accuracy(np.mean(group, axis=0), labels_N))
        gain.append(accuracies[-1] - float(np.mean([accuracy(member, labels_N) for member in group])))
    return {"acc": float(np.mean(accuracies)), "gain": float(np.mean(gain))}


def all_pairs(logits: Mapping[str, Logits]) -> list[tuple[Logits, Logits]]:
    """List every pair of models once."""
    return [(logits[first], logits[other]) for first, other in combinations(logits, 2)]


def bootstrap(right_SN: Sequence[NDArray[np.bool_]], *, name: str) -> tuple[float, float, float]:
    """Return the mean accuracy with its 95 % bootstrap interval over seeds and images.

    Images are resampled together for all seeds, because all seeds are tested on the same ones.
    """
    right = np.stack(right_SN).astype(np.float64)
    random = generator("petl bootstrap", name)
    seeds, images = right.shape
    means = [
        right[random.integers(0, seeds, seeds)][:, random.integers(0, images, images)].mean() for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(right.mean()), float(low), float(high)


def read_logits(path: Path) -> Logits:
    """Read the logits of a training."""
    with np.load(path, allow_pickle=False) as file:
        return file["logits"]
