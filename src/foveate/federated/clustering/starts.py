"""Initial centers of k-means: random rows, and k-means++."""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.distances import FAST_CELLS, FEW, ROUNDING, Floats, Labels, blocks, squared

# Relative; sums by inner products that are closer than this are decided by differences.
_NEAR_TIE = 1e-8


def random_rows(points_ND: Floats, clusters: int, rng: np.random.Generator) -> Floats:
    """Draw distinct rows as centers; fewer if the data have fewer distinct rows."""
    picked = points_ND[rng.choice(len(points_ND), size=min(clusters, len(points_ND)), replace=False)]
    # Rows may repeat in the data; only then the sort over all rows is needed.
    if len(np.unique(picked, axis=0)) == clusters:
        return picked
    rows = np.unique(points_ND, axis=0)
    return rows[rng.permutation(len(rows))[:clusters]]


def plus_plus(points_ND: Floats, clusters: int, rng: np.random.Generator, *, weight_N: Floats | None = None) -> Floats:
    """k-means++ (Arthur and Vassilvitskii 2007), greedy: of 2 + log(K) drawn rows the one that lowers the sum most.

    Stops with fewer centers where every row has one already.
    """
    weights = np.ones(len(points_ND)) if weight_N is None else weight_N
    # scikit-learn takes as many candidates per center.
    tries = 2 + int(np.log(max(1, clusters)))
    picked = [int(_draw(weights, np.cumsum(weights), 1, rng)[0])]
    nearest = (_ByDifferences if points_ND.shape[1] <= FEW else _ByProducts)(points_ND, weights, picked[0])
    while len(picked) < clusters:
        mass_N = nearest.best_N if weight_N is None else nearest.best_N * weights
        # "right": a row without mass has the running total of the row before it, and is skipped.
        total_N = np.cumsum(mass_N)
        # Every row has a center already: the data have fewer distinct rows than clusters.
        if not total_N[-1] > 0:
            break
        picked.append(nearest.add_best_of(_draw(mass_N, total_N, tries, rng)))
    return points_ND[picked]


def _draw(mass_N: Floats, total_N: Floats, count: int, rng: np.random.Generator) -> Labels:
    """Rows drawn with probability proportional to their mass, whose running total is given; never one without mass."""
    drawn = np.searchsorted(total_N, rng.random(count) * total_N[-1], side="right")
    if drawn.max() == len(mass_N):  # totals that are infinite, or hardly above 0
        drawn = np.minimum(drawn, np.flatnonzero(mass_N)[-1])
    return drawn


class _ByDifferences:
    """Squared distances of all points to the nearest chosen row, `best_N`."""

    def __init__(self, points_ND: Floats, weight_N: Floats, first: int) -> None:
        self._points_ND, self._weight_N = points_ND, weight_N
        self.best_N = np.full(len(points_ND), np.inf)
        self.best_N = self._table(np.array([first]))[0]

    def add_best_of(self, drawn_T: Labels) -> int:
        """Adds the row whose weighted sum of squared distances is lowest, the first of equal ones; returns it."""
        table_TN = self._table(drawn_T)
        winner = int((table_TN @ self._weight_N).argmin())
        self.best_N = table_TN[winner]
        return int(drawn_T[winner])

    def _table(self, drawn_T: Labels) -> Floats:
        """`best_N` as each of these rows would leave it."""
        table_TN = np.empty((len(drawn_T), len(self._points_ND)))
        centers_TD = self._points_ND[drawn_T]
        for block in blocks(len(self._points_ND), max(centers_TD.shape), cells=FAST_CELLS):
            found_TB = squared(self._points_ND[block], centers_TD)
            np.minimum(self.best_N[block], found_TB, out=table_TN[:, block])
        return table_TN


class _ByProducts(_ByDifferences):
    """The same distances, bit for bit, computed faster in many dimensions.

    Inner products find the row that wins and the points that it changes; differences are then computed only for these
    points, or for all points if two rows are too close to call.
    """

    def __init__(self, points_ND: Floats, weight_N: Floats, first: int) -> None:
        super().__init__(points_ND, weight_N, first)
        # Centered first: inner products of points far from zero lose all digits of small distances.
        self._offset_D = points_ND.mean(0)
        self._length_N = np.empty(len(points_ND))
        for block in self._blocks(1):
            shifted_BD = points_ND[block] - self._offset_D
            self._length_N[block] = np.einsum("bd,bd->b", shifted_BD, shifted_BD)

    def add_best_of(self, drawn_T: Labels) -> int:
        """Add the best row, see `_ByDifferences.add_best_of`."""
        near_TN, total_T, rounding = self._guess(drawn_T)
        winner = int(total_T.argmin())
        # Negated, so that NaN counts as a rival.
        rivals_T = drawn_T[~(total_T > total_T[winner] * (1 + _NEAR_TIE) + rounding)]
        if (rivals_T != drawn_T[winner]).any():
            return super().add_best_of(drawn_T)
        chosen_D = self._points_ND[drawn_T[winner]]
        rows_R = np.flatnonzero(near_TN[winner])
        for block in blocks(len(rows_R), len(chosen_D), cells=FAST_CELLS):
            rows_B = rows_R[block]
            found_B = squared(self._points_ND[rows_B], chosen_D[None])[0]
            self.best_N[rows_B] = np.minimum(self.best_N[rows_B], found_B)
        return int(drawn_T[winner])

    def _guess(self, drawn_T: Labels) -> tuple[np.ndarray, Floats, float]:
        """Points that may be nearer to each row than to all chosen ones [T, N]; weighted sums [T]; their rounding."""
        moved_TD = self._points_ND[drawn_T] - self._offset_D
        length_T = self._length_N[drawn_T]
        near_TN = np.empty((len(drawn_T), len(self._points_ND)), dtype=bool)
        total_T = np.zeros(len(drawn_T))
        for block in self._blocks(len(drawn_T)):
            best_B, length_B, weight_B = self.best_N[block], self._length_N[block], self._weight_N[block]
            guess_TB = moved_TD @ (self._points_ND[block] - self._offset_D).T
            guess_TB *= -2.0
            guess_TB += length_B
            guess_TB += length_T[:, None]
            # Rounding may only add points to those that are compared exactly, never hide one.
            slack_B = ROUNDING * (length_B + length_T.max())
            np.less(guess_TB, best_B + slack_B, out=near_TN[:, block])
            np.minimum(guess_TB, best_B, out=guess_TB)
            total_T += guess_TB @ weight_B
        rounding = 2 * ROUNDING * float(self._weight_N @ self._length_N + self._weight_N.sum() * length_T.max())
        return near_TN, total_T, rounding

    def _blocks(self, tries: int):
        return blocks(len(self._points_ND), max(tries, self._points_ND.shape[1]), cells=FAST_CELLS)
