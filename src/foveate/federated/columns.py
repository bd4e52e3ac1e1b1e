"""Names, order and types of clients' columns: digests that a server compares, and sorting by name at a client.

Columns are matched by their position. Where they have names, clients send a digest of names and types, never the names;
short names can be guessed from it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.federated.points import Feature, Points

HELP = "give the columns the same names and order, or let every client pass --align-columns (align-columns=true)"


@dataclass(frozen=True)
class ColumnDigests:
    """Digests of columns with names; "" where one has no name.

    Attributes:
        ordered: of names and types in their order. unordered: of the same, sorted.
    """

    ordered: str = ""
    unordered: str = ""

    @classmethod
    def of(cls, features: Sequence[Feature]) -> ColumnDigests:
        """Digests of these columns."""
        if not features or any(not feature.name for feature in features):
            return cls()
        pairs = [[feature.name, feature.type] for feature in features]
        ordered, unordered = (
            # 128 bits are enough to tell columns apart; a longer digest would not make names harder to guess.
            hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:32]
            for listed in (pairs, sorted(pairs))
        )
        return cls(ordered, unordered)


def find_mismatches(digests: Mapping[int, ColumnDigests]) -> dict[int, str]:
    """Reasons by client whose columns differ from those of most clients; columns without names are not compared.

    Raises:
        UserError: the columns differ, and no more than half of the clients agree.
    """
    named = {client: digest for client, digest in digests.items() if digest.ordered}
    if not named:
        return {}
    usual, votes = Counter(digest.ordered for digest in named.values()).most_common(1)[0]
    if votes == len(named):
        return {}
    # Half is no majority: if two clients differ, nothing shows which one is right.
    if 2 * votes <= len(named):
        raise UserError(f"columns: the clients' names, order or types differ and no majority agrees; {HELP}")
    unordered = next(digest.unordered for digest in named.values() if digest.ordered == usual)
    return {
        client: (
            "its columns are in another order than those of most clients; let every client pass --align-columns"
            if digest.unordered == unordered
            else "its columns have other names or types than those of most clients"
        )
        for client, digest in named.items()
        if digest.ordered != usual
    }


def sort_columns(points: Points) -> Points:
    """Sort the columns by name, which is the same order at every client that does so.

    Raises:
        UserError: a column without a name, or two of one name.
    """
    names = [feature.name for feature in points.features]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{points.name}: columns cannot be aligned, because some have no name or the same name")
    order = np.argsort(np.array(names))
    features = tuple(points.features[index] for index in order)
    return replace(points, points_ND=np.ascontiguousarray(points.points_ND[:, order]), features=features)


def match_columns(
    names: Sequence[str], points: Sequence[NDArray[np.float64]], features: Sequence[Sequence[Feature]], *, align: bool
) -> list[NDArray[np.float64]]:
    """Points of clients in one process with the columns of the first; reordered by name with `align`.

    Args:
        names: of the clients, for errors.

    Raises:
        UserError: columns of other names, types or order; names the client and the first column that differs.
    """
    first = list(features[0])
    matched = []
    for name, matrix, client_features in zip(names, points, features, strict=True):
        columns = list(client_features)
        # Without names only the position is left to match by.
        if columns == first or not all(feature.name for feature in (*first, *columns)):
            matched.append(matrix)
            continue
        if align and len(set(first)) == len(first) and set(columns) == set(first):
            matched.append(np.ascontiguousarray(matrix[:, [columns.index(feature) for feature in first]]))
            continue
        index = next(i for i, (a, b) in enumerate(zip(columns, first, strict=True)) if a != b)
        is_order = set(columns) == set(first)
        how = "in another order than" if is_order else "other names or types than"
        help_text = "pass --align-columns to reorder them by name" if is_order else "rename them"
        raise UserError(
            f"{name}: columns: {how} {names[0]}, the first at {index} (got '{columns[index].name}', a "
            f"{columns[index].type}); expected '{first[index].name}', a {first[index].type}; {help_text}"
        )
    return matched
