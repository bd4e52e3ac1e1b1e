"""Split one data set over clients, for experiments: evenly, by a Dirichlet draw per class, by shards, by natural ids.

Every function returns one sorted array of row indices per client; together they hold every row once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.core.progress import say

Rows = NDArray[np.int64]
# A limit, because a split that cannot succeed (small alpha, many clients) would be drawn forever.
MIN_POINTS, MAX_DRAWS = 10, 300_000
"""Defaults of a Dirichlet split. A published setting (50 clients, alpha 0.1, at least 10 points) took 35,287 draws;
with five seeds of `balanced` it took 6,525 to 75,060, and once more than 100,000 (0.3 ms each)."""
_PATIENCE = 10_000


@dataclass(frozen=True)
class Partition:
    """Rows by client.

    Attributes:
        rows: sorted row indices.
        names: of the clients.
        draws: number of draws until every client was large enough; 1 where nothing was drawn again.
    """

    rows: list[Rows]
    names: list[str]
    draws: int = 1


def _numbered(rows: Sequence[Rows], draws: int = 1) -> Partition:
    return Partition([np.sort(part) for part in rows], [f"client {number}" for number in range(len(rows))], draws)


def _check_clients(clients: int, points: int) -> None:
    if not 1 <= clients <= points:
        raise UserError(f"number of clients must be 1 to {points}, the number of points (got {clients})")


def even(points: int, clients: int, rng: np.random.Generator) -> Partition:
    """Cut a random permutation into parts whose sizes differ by one at most (independent, identically distributed).

    Raises:
        UserError: more clients than points, or none.
    """
    _check_clients(clients, points)
    return _numbered(np.array_split(rng.permutation(points), clients))


def dirichlet(
    labels_N: ArrayLike,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    min_points: int = 1,
    max_draws: int = MAX_DRAWS,
    balanced: bool = False,
) -> Partition:
    """Draw shares over the clients from Dirichlet(alpha) for each class (Hsu et al. 2019, arXiv 1909.06335).

    The rows of a class are shuffled and cut at the floor of the cumulative shares. The smaller alpha, the fewer classes
    has a client.

    Args:
        min_points: every client gets at least so many rows; everything is drawn again until it has. 0 = take the first.
        max_draws: so often at most.
        balanced: shares of clients that already hold N / clients rows are set to zero and the rest scaled up; if no
            share is left, everything is drawn again.

    Raises:
        UserError: an alpha that is not above 0, too many clients, or `max_draws` without success.
    """
    labels = np.asarray(labels_N)
    _check_clients(clients, len(labels))
    if not alpha > 0 or not np.isfinite(alpha):
        raise UserError(f"alpha of a Dirichlet split must be above 0, such as 0.3 (got {alpha})")
    # Refused at once: no draw can give every client its minimum.
    if min_points * clients > len(labels):
        raise UserError(
            f"{clients} clients with at least {min_points} points each need {min_points * clients} (got "
            f"{len(labels)}); lower --min-points or take fewer clients"
        )
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for draw in range(1, max_draws + 1):
        if draw == _PATIENCE < max_draws:
            say(
                f"split: no draw in {_PATIENCE:,} gave each of {clients} clients {min_points} points; drawing on up to "
                f"--max-draws {max_draws:,}, for minutes"
            )
        balance = len(labels) if balanced else None
        parts = _dirichlet_draw(classes, clients, rng, alpha, min_points=min_points, balance=balance)
        if parts is not None:
            return _numbered(parts, draw)
    raise UserError(
        f"no Dirichlet split with alpha {alpha:g} gave each of {clients} clients {min_points} points in "
        f"--max-draws {max_draws:,} draws; raise it, lower --min-points, or take a larger alpha or fewer clients"
    )


def _dirichlet_draw(
    classes: Sequence[Rows],
    clients: int,
    rng: np.random.Generator,
    alpha: float,
    *,
    min_points: int,
    balance: int | None,
) -> list[Rows] | None:
    """One draw; None if a client got fewer than `min_points` rows, or no share was left to scale up."""
    drawn: list[tuple[Rows, Rows]] = []
    held_M = np.zeros(clients, dtype=np.int64)
    for rows in classes:
        rows = rng.permutation(rows)
        shares_M = rng.dirichlet(np.full(clients, alpha))
        if balance is not None:
            # FedNE's balanced split: full clients get no more of the remaining classes.
            shares_M = np.where(held_M < balance / clients, shares_M, 0.0)
        if not shares_M.sum() > 0:  # small alphas may underflow to zeros or NaN
            return None
        # Floors of the cumulative shares, as in the public codes: every row goes to exactly one client.
        cuts = (np.cumsum(shares_M / shares_M.sum())[:-1] * len(rows)).astype(np.int64)
        held_M += np.diff(cuts, prepend=0, append=len(rows))
        drawn.append((rows, cuts))
    # Rows are handed out only once every client has enough: tens of thousands of draws may be thrown away.
    if held_M.min() < min_points:
        return None
    pieces = [np.split(rows, cuts) for rows, cuts in drawn]
    return [np.concatenate([piece[client] for piece in pieces]) for client in range(clients)]


def shards(labels_N: ArrayLike, clients: int, rng: np.random.Generator, *, classes: int) -> Partition:
    """Give each client `classes` classes; each class is cut into equal pieces, one per client that holds it.

    Classes of a client are drawn without repetition, with weights 1 / (times used so far + 1), so that all are used
    about equally often. Classes that no client drew go, one each, to the clients with the fewest rows: no row is lost.

    Raises:
        UserError: more classes a client than there are, or too many clients.
    """
    labels = np.asarray(labels_N)
    _check_clients(clients, len(labels))
    values = np.unique(labels)
    if not 1 <= classes <= len(values):
        raise UserError(f"classes per client must be 1 to {len(values)}, the classes of the data (got {classes})")
    used_C = np.zeros(len(values))
    owners: list[list[int]] = [[] for _ in values]
    for client in range(clients):
        # Classes that many clients hold already become less likely, so that all are used about equally often.
        weights = 1 / (used_C + 1)
        for index in rng.choice(len(values), size=classes, replace=False, p=weights / weights.sum()):
            used_C[index] += 1
            owners[index].append(client)
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    # Classes that no client drew come last: by then it is known which clients have the fewest rows.
    for number in sorted(range(len(values)), key=lambda class_index: not owners[class_index]):
        if not owners[number]:
            owners[number] = [min(range(clients), key=lambda client: sum(len(part) for part in parts[client]))]
        rows = rng.permutation(np.flatnonzero(labels == values[number]))
        for client, part in zip(owners[number], np.array_split(rows, len(owners[number])), strict=True):
            parts[client].append(part)
    result = [np.concatenate(part) if part else np.zeros(0, np.int64) for part in parts]
    if min(len(part) for part in result) == 0:
        raise UserError(
            f"{clients} clients with {classes} classes each leave a client without a point; use fewer clients"
        )
    return _numbered(result)


def by_id(ids_N: Sequence[Hashable]) -> Partition:
    """Make one client per distinct id (a hospital, a camera, a user), sorted as strings.

    Raises:
        UserError: no row.
    """
    if len(ids_N) == 0:
        raise UserError("no rows to split")
    texts = np.array([str(item) for item in ids_N])
    names = np.unique(texts)
    # Stable, so that the rows of a client stay in their order.
    order = np.argsort(texts, kind="stable")
    starts = np.searchsorted(texts[order], names)
    return Partition([np.sort(part) for part in np.split(order, starts[1:])], [str(name) for name in names])
