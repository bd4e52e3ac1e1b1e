"""Measure how far apart two classes are in a taxonomy: the height of their lowest common ancestor (LCA).

The tree is that of the classes and their ancestors alone. The height of a class without classes below it is 0, that of
another node 1 + the largest height among its children.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from foveate.core.errors import UserError

NO_HEIGHT = -1


class LcaHeights(NamedTuple):
    """Mean LCA height of errors, in three definitions; NaN where there is no error to average.

    Attributes:
        num_errors: misclassified samples.
        num_excluded: those of them without a common ancestor: a class has no taxon, or another root.
        mean: over the others.
        official: over all, with 0 for the excluded: the released code looks the root up under a key that the tree
            does not have.
        with_root: over all, with the height of the highest root for the excluded.
    """

    num_errors: int
    num_excluded: int
    mean: float
    official: float
    with_root: float


class ClassTree:
    """The tree of K classes and their ancestors.

    Args:
        taxa_K: index of each class's taxon, -1 for none.
        parents_T: index of each taxon's parent, -1 for a root; no cycles.
    """

    def __init__(self, taxa_K: ArrayLike, parents_T: ArrayLike) -> None:
        self.taxa_K, self.parents_T = np.asarray(taxa_K, dtype=np.int64), np.asarray(parents_T, dtype=np.int64)
        if len(self.taxa_K) and not -1 <= self.taxa_K.min() <= self.taxa_K.max() < len(self.parents_T):
            raise UserError(f"taxa of classes: out of range; expected -1 to {len(self.parents_T) - 1}")
        self.heights_T = np.full(len(self.parents_T), NO_HEIGHT, dtype=np.int64)
        for taxon in self.taxa_K[self.taxa_K >= 0].tolist():
            for height, ancestor in enumerate(self.lineage(taxon)):
                # Lineages differ in length: a taxon's height is that of its deepest class.
                self.heights_T[ancestor] = max(self.heights_T[ancestor], height)

    def lineage(self, taxon: int) -> list[int]:
        """Return the taxa from `taxon` to its root, both included; none for -1."""
        taxa = []
        while taxon >= 0:
            taxa.append(taxon)
            taxon = int(self.parents_T[taxon])
        return taxa

    def level(self, taxon: int) -> int:
        """Return the number of edges from `taxon` to its root; 0 for -1."""
        return max(0, len(self.lineage(taxon)) - 1)

    def common_ancestor(self, first: int, second: int) -> int:
        """Return the lowest taxon above or equal to both; -1 if there is none."""
        ancestors = set(self.lineage(first))
        return next((taxon for taxon in self.lineage(second) if taxon in ancestors), -1)

    def lca_height(self, first: int, second: int) -> int:
        """Return the height of the lowest common ancestor of two taxa; NO_HEIGHT if they have none."""
        ancestor = self.common_ancestor(first, second)
        return int(self.heights_T[ancestor]) if ancestor >= 0 else NO_HEIGHT

    def lca_heights_of_errors(self, predictions_N: ArrayLike, truth_N: ArrayLike) -> LcaHeights:
        """Return the mean LCA height over samples whose class is predicted wrong.

        Args:
            predictions_N, truth_N: class numbers; a prediction of -1 (none) is left out.

        Source: OSU-NLP-Group/COSMO, gen_utils/analyze_taxonomy_model.py.
        """
        predictions, truth = np.asarray(predictions_N), np.asarray(truth_N)
        wrong_N = (predictions != truth) & (predictions >= 0)
        # Walks are in Python: errors are many, pairs of classes few.
        pairs, counts = np.unique(np.stack([predictions[wrong_N], truth[wrong_N]]), axis=1, return_counts=True)
        heights = np.array([self.lca_height(int(a), int(b)) for a, b in self.taxa_K[pairs].T], dtype=np.int64)
        num_errors, excluded = int(counts.sum()), heights == NO_HEIGHT
        if not num_errors:
            return LcaHeights(0, 0, *[float("nan")] * 3)
        total, num_excluded = int((heights * counts)[~excluded].sum()), int(counts[excluded].sum())
        mean = total / (num_errors - num_excluded) if num_errors > num_excluded else float("nan")
        root = int(self.heights_T.max(initial=0))
        return LcaHeights(
            num_errors, num_excluded, mean, total / num_errors, (total + root * num_excluded) / num_errors
        )
