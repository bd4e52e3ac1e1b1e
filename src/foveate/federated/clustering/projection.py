"""Two directions along which points of many features are drawn, from centers alone: a server may know them."""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.distances import Floats


def axes(centers_KD: Floats) -> tuple[Floats, Floats]:
    """Origin [D] and two directions [D, 2] of the map: the data's own where there are two features or one, else the
    principal ones of the centers, which a server may draw without seeing a point.
    """
    width = centers_KD.shape[1]
    if width <= 2:
        return np.zeros(width), np.eye(width, 2)
    middle = centers_KD.mean(0)
    _, _, directions = np.linalg.svd(centers_KD - middle, full_matrices=False)
    two_D2 = np.zeros((width, 2))
    two_D2[:, : min(2, len(directions))] = directions[:2].T
    return middle, two_D2
