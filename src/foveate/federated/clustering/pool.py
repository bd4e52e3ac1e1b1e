"""All clients' centroids in one table, and the error for having too few groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.core.errors import UserError
from foveate.federated.clustering.distances import Floats, Labels


class TooFewGroupsError(UserError):
    """Fewer groups than clusters; `groups` is their number."""

    def __init__(self, message: str, *, groups: int) -> None:
        super().__init__(message)
        self.groups = groups


@dataclass(frozen=True)
class Pool:
    """Centroids of all clients together.

    Attributes:
        centers: [Q, D].
        counts: [Q], points of each; ones where clients do not report them (`counted` is then False).
        trusted: [Q], whether its client trusts it.
        client: [Q], number of its client.
        counted: counts were sent.
    """

    centers: Floats
    counts: Floats
    trusted: np.ndarray
    client: Labels
    counted: bool = True

    def __len__(self) -> int:
        return len(self.centers)

    def take(self, rows: np.ndarray) -> Pool:
        """Select rows."""
        return Pool(self.centers[rows], self.counts[rows], self.trusted[rows], self.client[rows], self.counted)

    def sorted(self) -> Pool:
        """Sort rows by their coordinates, so that no result depends on who answered first."""
        return self.take(lexicographic(self.centers))

    def distinct(self) -> int:
        """Number of distinct centers."""
        return len(np.unique(self.centers, axis=0))

    def need(self, clusters: int) -> None:
        """Raise TooFewGroupsError if there are fewer distinct centers than clusters."""
        groups = self.distinct()
        if groups < clusters:
            raise TooFewGroupsError(
                f"clusters must be at most {groups}, the number of distinct centroids of all clients (got {clusters}); "
                "use fewer clusters, or more centroids per client",
                groups=groups,
            )


def lexicographic(centers_QD: Floats) -> Labels:
    """Order of rows by their first coordinate, then the second, and so on."""
    # Reversed, because `lexsort` sorts by its last key first.
    return np.lexsort(centers_QD.T[::-1])
