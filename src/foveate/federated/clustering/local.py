"""A client's own computations, before anything leaves it: k-means, doubted centers, a radius. Pure functions.

Source: FeCA (arXiv 2407.12764), whose body was not available: `eliminate` and `radius` are a reconstruction, see
docs/methods/feca.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.federated.clustering.distances import FAST_CELLS, Floats, Labels, blocks, closest_pair, squared, sums
from foveate.federated.clustering.lloyd import MAX_STEPS, Clustering, lloyd, plus_plus, random_rows

# To give a scale: the two halves of a Gaussian cut at its mean are 1.32 times the sum of their deviations apart.
FUSE_BELOW = 1.6


@dataclass(frozen=True)
class Local:
    """A client's clusters, none empty.

    Attributes:
        centers: [k, D].
        counts: [k], points.
        squares: [k], sums of squared distances to the center (G).
        labels: [N], 0 to k - 1.
    """

    centers: Floats
    counts: Floats
    squares: Floats
    labels: Labels

    @property
    def inertia(self) -> float:
        return float(self.squares.sum())

    @classmethod
    def of(cls, points_ND: Floats, centers_KD: Floats, labels_N: Labels) -> Local:
        """Clusters by given labels and centers; empty ones are dropped, the others keep their order."""
        counts_K = np.bincount(labels_N, minlength=len(centers_KD))
        used = np.flatnonzero(counts_K)
        label_N = (np.cumsum(counts_K > 0) - 1)[labels_N]
        distance_N = np.empty(len(points_ND))
        for block in blocks(len(points_ND), points_ND.shape[1], cells=FAST_CELLS):
            distance_N[block] = ((points_ND[block] - centers_KD[labels_N[block]]) ** 2).sum(1)
        squares = np.bincount(label_N, weights=distance_N, minlength=len(used)).astype(np.float64)
        return cls(centers_KD[used], counts_K[used].astype(np.float64), squares, label_N)


def local_kmeans(
    points_ND: Floats,
    clusters: int,
    rng: np.random.Generator,
    *,
    start: str = "kmeans++",
    tries: int = 5,
    starts_KD: Floats | None = None,
    max_steps: int = MAX_STEPS,
    spherical: bool = False,
) -> Local:
    """k-means of one client: the best of several runs.

    Args:
        start: "kmeans++", "random" (distinct rows) or "awasthi_sheffet" (k-FED's).
        tries: runs; the smallest inertia wins, of equal ones the first.
        starts_KD: given centers, one run; for tests.

    Returns fewer clusters than asked where the client has fewer distinct rows, or where clusters became empty.
    """
    best: Clustering | None = None
    for _ in range(1 if starts_KD is not None else tries):
        if starts_KD is not None:
            centers = starts_KD
        elif start == "awasthi_sheffet":
            centers = awasthi_sheffet(points_ND, clusters, rng)
        else:
            centers = (random_rows if start == "random" else plus_plus)(points_ND, clusters, rng)
        run = lloyd(points_ND, centers, max_steps=max_steps, spherical=spherical)
        # Strictly smaller: of equal runs the first counts.
        if best is None or run.inertia < best.inertia:
            best = run
    assert best is not None
    return Local.of(points_ND, best.centers, best.labels)


def awasthi_sheffet(points_ND: Floats, clusters: int, rng: np.random.Generator) -> Floats:
    """k-FED's start: project to the best rank K, k-means++ there, means of the points that lie clearly at one center.

    A point counts for a center if it is at most a third as far from it as from any other. Source: Awasthi and Sheffet,
    "Improved spectral-norm bounds for clustering" (2012), as used by Dennis, Li, Smith (k-FED, arXiv 2103.00697).
    """
    _, axes_DD = np.linalg.eigh(points_ND.T @ points_ND)
    # Eigenvectors of X'X are the right singular vectors of X, from a table [D, D] however many points there are.
    # eigh sorts ascending; the last K axes span the best projection of rank K.
    axes_DR = axes_DD[:, ::-1][:, :clusters]
    projected_ND = (points_ND @ axes_DR) @ axes_DR.T
    run = lloyd(projected_ND, plus_plus(projected_ND, clusters, rng))
    # With a single center there is no other to compare distances with.
    if len(run.centers) < 2:
        return run.centers
    clear_N = np.empty(len(points_ND), dtype=bool)
    for block in blocks(len(points_ND), max(clusters, points_ND.shape[1])):
        two_2B = np.partition(squared(projected_ND[block], run.centers), 1, axis=0)[:2]
        # Squared distances: a third of the distance is a ninth of its square.
        clear_N[block] = 9 * two_2B[0] <= two_2B[1]
    total_KD, count_K = sums(points_ND[clear_N], run.labels[clear_N], len(run.centers))
    centers = run.centers.copy()
    centers[count_K > 0] = total_KD[count_K > 0] / count_K[count_K > 0, None]
    return centers


def merge_small(points_ND: Floats, local: Local, min_count: int) -> Local:
    """Merge clusters of fewer than `min_count` points into the nearest one (weighted mean), the smallest first.

    So the mean of a few people cannot be requested. A client with fewer points than that keeps one cluster.
    """
    centers, counts = list(local.centers), list(local.counts)
    members = [[number] for number in range(len(centers))]
    while len(centers) > 1 and min(counts) < min_count:
        small = int(np.argmin(counts))
        others = [number for number in range(len(centers)) if number != small]
        gaps = [float(((centers[number] - centers[small]) ** 2).sum()) for number in others]
        near = others[int(np.argmin(gaps))]
        total = counts[near] + counts[small]
        centers[near] = (counts[near] * centers[near] + counts[small] * centers[small]) / total
        counts[near] = total
        members[near] += members[small]
        del centers[small], counts[small], members[small]
    target = np.empty(len(local.centers), dtype=np.int64)
    for number, group in enumerate(members):
        target[group] = number
    return Local.of(points_ND, np.array(centers), target[local.labels])


def withheld(count_K: Floats, min_count: int) -> NDArray[np.bool_]:
    """Cells of a partition that a client does not report, [K]: those of fewer than `min_count` points.

    A server may know the sum of all points, and by subtraction that of the withheld ones: where these are fewer than
    `min_count`, the smallest of the other cells are withheld with them.
    """
    silent_K = (count_K > 0) & (count_K < min_count)
    while 0 < count_K[silent_K].sum() < min_count and (open_K := (count_K > 0) & ~silent_K).any():
        # The smallest open cell, which costs the refinement the fewest points.
        silent_K[np.where(open_K, count_K, np.inf).argmin()] = True
    return silent_K


@dataclass(frozen=True)
class EliminationStep:
    """One question of the elimination: is `candidate` one center for several clusters, and `pair` the reverse?

    Indices are those of the client's clusters; of a merged pair the lower one lives on.
    """

    active: list[int]
    spread: Floats
    candidate: int
    pair: tuple[int, int]
    squares_candidate: float
    squares_merged: float
    eliminate: bool


@dataclass(frozen=True)
class Elimination:
    """Result of the elimination: which centers to trust.

    Attributes:
        trusted: [k], bool.
        order: indices of the doubted ones, in the order of elimination.
        working: [w, D], centers after merging pairs.
        groups: clusters in each working center.
        steps: every question that was decided.
    """

    trusted: np.ndarray
    order: list[int]
    working: Floats
    groups: list[list[int]]
    steps: list[EliminationStep]


def eliminate(local: Local) -> Elimination:
    """Doubt centers that lie between several true clusters, as long as undoing the mistake pays.

    While more than two working clusters are left: i has the largest root-mean-square radius; p and q are the closest
    pair of the others. If G_i >= G_p + G_q + n_p n_q / (n_p + n_q) |c_p - c_q|^2, then splitting i and merging p and q
    gains: i goes, p and q are merged in the working copy (both still count as trusted); otherwise stop. Reconstruction.
    """
    centers = {number: center for number, center in enumerate(local.centers)}
    counts = dict(enumerate(local.counts))
    squares = dict(enumerate(local.squares))
    groups = {number: [number] for number in centers}
    order: list[int] = []
    steps: list[EliminationStep] = []
    # A candidate and a pair of others need three working clusters.
    while len(centers) > 2:
        active = list(centers)
        spread = np.sqrt([squares[number] / counts[number] for number in active])
        candidate = active[int(spread.argmax())]
        others = [number for number in active if number != candidate]
        first, second, gap = closest_pair(np.array([centers[number] for number in others]))
        p, q = others[first], others[second]
        total = counts[p] + counts[q]
        merged = squares[p] + squares[q] + counts[p] * counts[q] / total * gap**2
        goes = bool(squares[candidate] >= merged)
        steps.append(EliminationStep(active, spread, candidate, (p, q), squares[candidate], merged, goes))
        if not goes:
            break
        order += groups.pop(candidate)
        del centers[candidate], counts[candidate], squares[candidate]
        centers[p] = (counts[p] * centers[p] + counts[q] * centers[q]) / total
        # The merged pair keeps its sum of squares, so that later questions need no point.
        counts[p], squares[p] = total, merged
        groups[p] += groups.pop(q)
        del centers[q], counts[q], squares[q]
    trusted = np.ones(len(local.centers), dtype=bool)
    trusted[order] = False
    return Elimination(
        trusted, order, np.array(list(centers.values())), [sorted(members) for members in groups.values()], steps
    )


def fuse(points_ND: Floats, local: Local, *, below: float = FUSE_BELOW) -> Local:
    """Merge fragments of one cluster.

    The closest pair is merged as long as its distance is at most `below` times the sum of both standard deviations
    along the line that joins them.
    """
    centers, labels = list(local.centers), local.labels.copy()
    while len(centers) > 1:
        p, q, gap = closest_pair(np.array(centers))
        # Centers that coincide have no line between them to measure along, and are merged.
        if gap > 0:
            along = (centers[q] - centers[p]) / gap
            spread = sum(float((points_ND[labels == label] @ along).std()) for label in (p, q))
            if gap > below * spread:
                break
        both = (labels == p) | (labels == q)
        centers[p] = points_ND[both].mean(0)
        labels[both] = p
        # The labels behind q move up by one, as the list of centers does.
        labels[labels > q] -= 1
        del centers[q]
    return Local.of(points_ND, np.array(centers), labels)


def half_smallest_distance(centers_KD: Floats) -> float:
    """Half the distance of the closest pair; NaN with fewer than two centers."""
    return closest_pair(centers_KD)[2] / 2 if len(centers_KD) > 1 else float("nan")
