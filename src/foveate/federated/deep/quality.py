"""Quality of an encoder trained without labels: its groups against labels, votes of neighbors, a linear probe."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.seeds import generator
from foveate.federated.reporting import compare_with_labels
from foveate.metrics import embedding

# The vote needs all pairwise distances; a sample bounds them.
MAX_POINTS = 3000
NEIGHBORS = 7
HELD_OUT = 0.2
"""Share of the points that a probe is tested on."""

Floats = NDArray[np.floating]


def measure_quality(
    vectors_ND: Floats,
    outputs_NE: Floats,
    groups_N: NDArray[np.int64],
    centers_KD: Floats,
    labels_N: NDArray[Any] | None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Compute measures by name; with labels: nmi, ari, purity of groups, and knn and probe of the encoder's output.

    distance is the root mean square from a unit vector to its center, from 0 to 2; it cannot compare encoders.
    The probe is logistic regression on four fifths of at most `MAX_POINTS` points, tested on the others; knn leaves
    one out.
    """
    gaps_N = ((vectors_ND - centers_KD[groups_N]) ** 2).sum(1)
    measures = {"distance": float(np.sqrt(gaps_N.mean()))}
    if labels_N is None:
        return measures
    measures |= compare_with_labels(labels_N, groups_N)
    order = generator("deep quality", seed, len(labels_N)).permutation(len(labels_N))[:MAX_POINTS]
    sample, labels = outputs_NE[order], labels_N[order]
    if len(sample) > 2 * NEIGHBORS + 2:
        classes = np.unique(labels, return_inverse=True)[1]
        measures["knn"] = embedding.knn_accuracy(sample, classes, k=NEIGHBORS)
    accuracy = probe(sample, labels)
    return measures if accuracy is None else measures | {"probe": accuracy}


def probe(outputs_NE: Floats, labels_N: NDArray[Any]) -> float | None:
    """Accuracy of logistic regression on standardized features; None where the training part has one label only.

    The first points train and the last `HELD_OUT` of them test: pass them in a random order.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    cut = len(labels_N) - int(HELD_OUT * len(labels_N))
    if cut == len(labels_N) or len(np.unique(labels_N[:cut])) < 2:
        return None
    # Standardize with statistics of the training part only, so that the test part stays unseen.
    scaler = StandardScaler().fit(outputs_NE[:cut])
    model = LogisticRegression(C=0.1, max_iter=300).fit(scaler.transform(outputs_NE[:cut]), labels_N[:cut])
    return float((model.predict(scaler.transform(outputs_NE[cut:])) == labels_N[cut:]).mean())
