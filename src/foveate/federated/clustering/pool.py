"""All clients' centroids in one table, and the error for having too few groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.core.errors import UserError
from foveate.federated.clustering.distances import Floats, Labels


class TooFewGroupsError(UserError):
    """Fewer groups than clusters asked for. `groups` says how many were found."""

    def __init__(self, sentence: str, *, groups: int) -> None:
        super().__init__(sentence)
        self.groups = groups


@dataclass(frozen=True)
class Pool:
    """What the server knows of all clients together.

    Attributes:
        centers: [Q, D]. counts: [Q], points of each; ones where clients do not say (`counted` is then False).
        kept: [Q], whether its client trusts it. client: [Q], number of its client. counted: counts were sent.
    """

    centers: Floats
    counts: Floats
    kept: np.ndarray
    client: Labels
    counted: bool = True

    def __len__(self) -> int:
        return len(self.centers)

    def take(self, rows: np.ndarray) -> Pool:
        """Those rows only."""
        return Pool(self.centers[rows], self.counts[rows], self.kept[rows], self.client[rows], self.counted)

    def sorted(self) -> Pool:
        """Rows in the order of their coordinates, so that no result depends on who answered first."""
        return self.take(lexicographic(self.centers))

    def distinct(self) -> int:
        """How many different centers there are."""
        return len(np.unique(self.centers, axis=0))

    def need(self, clusters: int) -> None:
        """Returns where there are as many different centers as clusters.

        Raises:
            TooFewGroupsError: there are fewer.
        """
        groups = self.distinct()
        if groups < clusters:
            raise TooFewGroupsError(
                f"all clients together sent {groups} different centroids; {clusters} clusters cannot be made of them; "
                "ask for fewer clusters, or for more centroids of each client",
                groups=groups,
            )


def lexicographic(centers_QD: Floats) -> Labels:
    """The order of rows by their first coordinate, then the second, and so on."""
    return np.lexsort(centers_QD.T[::-1])
