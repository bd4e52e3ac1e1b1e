"""Signs of one center for many clusters, and of many for one, as in the predecessor of FeCA.

Source: "A Geometric Approach to k-means" (arXiv 2201.04822). `eliminate` uses `root_mean_square` and the closest pair;
the others are here to compare.
"""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.distances import Floats, Labels


def _radii(points_ND: Floats, centers_KD: Floats, labels_N: Labels) -> list[Floats]:
    """Distances of the points of each cluster to its center."""
    return [np.linalg.norm(points_ND[labels_N == number] - center, axis=1) for number, center in enumerate(centers_KD)]


def root_mean_square(points_ND: Floats, centers_KD: Floats, labels_N: Labels) -> Floats:
    """[K]: root-mean-square distance to the center. The largest is suspected."""
    return np.sqrt([(radii**2).mean() for radii in _radii(points_ND, centers_KD, labels_N)])


def shape_normalized(points_ND: Floats, centers_KD: Floats, labels_N: Labels) -> Floats:
    """[K]: the same, over the cluster's largest distance. The largest is suspected."""
    radii_K = _radii(points_ND, centers_KD, labels_N)
    return np.sqrt([(radii**2).mean() for radii in radii_K]) / [radii.max() for radii in radii_K]


def sum_of_squares(points_ND: Floats, centers_KD: Floats, labels_N: Labels) -> Floats:
    """[K]: the cluster's share of the k-means objective. The largest is suspected."""
    return np.array([(radii**2).sum() for radii in _radii(points_ND, centers_KD, labels_N)])


def share_near_center(points_ND: Floats, centers_KD: Floats, labels_N: Labels, *, epsilon: float) -> Floats:
    """[K]: share of a cluster's points within `epsilon` times the smallest median distance of all clusters.

    A center between several clusters has few points near it: the smallest share is suspected. The predecessor halves
    epsilon by a rule of its own until the shares tell clusters apart; here it is given.
    """
    radii_K = _radii(points_ND, centers_KD, labels_N)
    reach = epsilon * min(np.median(radii) for radii in radii_K)
    return np.array([(radii <= reach).mean() for radii in radii_K])
