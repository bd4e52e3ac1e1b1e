"""All clients' centroids in one table, and the error for having too few groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.federated.clustering.distances import Floats, Labels
from foveate.settings.errors import UserError


class TooFewGroupsError(UserError):
    """Fewer groups than clusters asked for. `groups` says how many were found."""

    def __init__(self, sentence: str, *, groups: int) -> None:
        super().__init__(sentence)
        self.groups = groups


@dataclass(frozen=True)
class Pool:
    """What the server knows of all clients together.

    Attributes:
        centres: [Q, D]. counts: [Q], points of each; ones where clients do not say (`counted` is then False).
        kept: [Q], whether its client trusts it. client: [Q], number of its site. counted: counts were sent.
    """

    centres: Floats
    counts: Floats
    kept: np.ndarray
    client: Labels
    counted: bool = True

    def __len__(self) -> int:
        return len(self.centres)

    def take(self, rows: np.ndarray) -> Pool:
        """Those rows only."""
        return Pool(self.centres[rows], self.counts[rows], self.kept[rows], self.client[rows], self.counted)

    def sorted(self) -> Pool:
        """Rows in the order of their coordinates, so that no result depends on who answered first."""
        return self.take(lexicographic(self.centres))

    def distinct(self) -> int:
        """How many different centres there are."""
        return len(np.unique(self.centres, axis=0))

    def need(self, clusters: int) -> None:
        """Returns where there are as many different centres as clusters.

        Raises:
            TooFewGroupsError: there are fewer.
        """
        groups = self.distinct()
        if groups < clusters:
            raise TooFewGroupsError(
                f"all sites together sent {groups} different centroids; {clusters} clusters cannot be made of them; "
                "ask for fewer clusters, or for more centroids of each site",
                groups=groups,
            )


def lexicographic(centres_QD: Floats) -> Labels:
    """The order of rows by their first coordinate, then the second, and so on."""
    return np.lexsort(centres_QD.T[::-1])
