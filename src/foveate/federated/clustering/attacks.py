"""Attacks of an honest-but-curious server on a clustering, to try on your own data.

Each takes `ask`, which carries a request to a client and returns its answer, or None if the client refuses. All
requests stay within the client's limits. An attack returns candidates for rows; the caller compares them with the
real rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from foveate.federated.clustering import protocol
from foveate.federated.clustering.distances import Floats
from foveate.federated.clustering.options import resolve
from foveate.federated.messages import Message

Ask = Callable[[Message], Message | None]


def count_rows_read(candidates: Iterable[Floats], rows_ND: Floats, *, within: float = 1e-6) -> int:
    """Rows that a candidate equals, up to rounding."""
    read = set()
    for candidate in candidates:
        distance_N = np.abs(rows_ND - candidate).max(axis=1)
        if distance_N.min() < within:
            read.add(int(distance_N.argmin()))
    return len(read)


def read_sums(answer: Message) -> tuple[Floats, Floats]:
    """Sums [k, D] and counts [k] in the answer to `query.centroids` or `query.lloyd`."""
    counts = np.asarray(answer.array("counts"))
    if "sums" in answer.arrays:
        return np.asarray(answer.array("sums")), counts
    return np.asarray(answer.array("centers")) * counts[:, None], counts


def subtract_cells(answers: Sequence[Message]) -> list[Floats]:
    """Differences of two cells, of two answers about the same data, whose counts differ by one.

    Where one cell holds the points of the other and one more, the difference is that point.
    """
    tables = [read_sums(answer) for answer in answers]
    # A cell of one point needs no difference: its sum is the point.
    candidates: list[Floats] = [total[row] for total, counts in tables for row in np.flatnonzero(counts == 1)]
    for first in range(len(tables)):
        for second in range(first + 1, len(tables)):
            (total_1, count_1), (total_2, count_2) = tables[first], tables[second]
            gap = count_1[:, None] - count_2[None]
            pairs = np.argwhere((np.abs(gap) == 1) & (count_1[:, None] > 0) & (count_2[None] > 0))
            # The gap is 1 or -1: as a sign it turns either difference into the point.
            candidates += [(total_1[i] - total_2[j]) * gap[i, j] for i, j in pairs]
    return candidates


def ask_ordinary_runs(
    ask: Ask, runs: int, *, clusters: int, min_count: int, refine_rounds: int = 0, client: int = 0
) -> list[Message]:
    """Answers of one client to ordinary runs that differ by seed and, in turn, by K; refused requests are left out."""
    answers = []
    for seed in range(runs):
        options = resolve(clusters + seed % 3, seed=seed, min_count=min_count, refine_rounds=refine_rounds)
        answer = ask(protocol.centroids_request(options, client))
        if answer is None:
            continue
        answers.append(answer)
        centers = np.asarray(answer.array("centers"))
        for round in range(1, refine_rounds + 1):
            step = ask(protocol.lloyd_request(centers, options, round))
            if step is None:
                break
            answers.append(step)
            total, counts = read_sums(step)
            centers = centers.copy()
            centers[counts > 0] = total[counts > 0] / counts[counts > 0, None]
    return answers


def read_from_inertia(ask: Ask, middle_D: Floats, reach: float, *, min_count: int, steps: int = 40) -> list[Floats]:
    """Rows from the answers to `query.assign`, which say how well centers fit.

    A second center far out along an axis gets the few points beyond a threshold. Moving it a little forth and back
    along each axis changes the sum of squares by 2 h S - n h^2 and -2 h S - n h^2, which gives their number n and their
    sum S.

    Args:
        middle_D: the first center, such as the mean of what the client sent.
        reach: how far out thresholds begin.
        steps: thresholds per direction.
    """
    width = len(middle_D)
    options = resolve(2, min_count=min_count)
    num_questions = 0

    def inertia(centers_KD: Floats) -> float | None:
        nonlocal num_questions
        num_questions += 1
        answer = ask(protocol.assign_request(centers_KD, options, num_questions))
        return None if answer is None else float(answer.number("inertia"))

    rows: list[Floats] = []
    alone = inertia(middle_D[None])
    if alone is None:
        return rows
    # Small, because the formula holds only while no point changes its cell.
    step = 1e-3 * reach
    for axis in range(width):
        for sign in (1.0, -1.0):
            for threshold in np.linspace(reach, 0.2 * reach, steps):
                far = middle_D.copy()
                # The border between two centers is halfway, so the far center gets what lies beyond the threshold.
                far[axis] += sign * 2 * threshold
                together = inertia(np.stack([middle_D, far]))
                if together is None:
                    return rows
                if abs(alone - together) <= 1e-9 * abs(alone):
                    continue
                change = np.empty((2, width))
                for column in range(width):
                    for index, move in enumerate((step, -step)):
                        moved = far.copy()
                        moved[column] += move
                        value = inertia(np.stack([middle_D, moved]))
                        if value is None:
                            return rows
                        change[index, column] = together - value
                points = -(change[0] + change[1]).mean() / (2 * step**2)
                if round(points) == 1:
                    # With n = 1, S is the point's offset from the far center.
                    rows.append(far + (change[0] - change[1]) / (4 * step))
                break
    return rows
