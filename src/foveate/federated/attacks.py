"""Attacks of an honest-but-curious server on a clustering and on a map, to try on your own data before taking part.

They are simple on purpose: what they find is a lower bound. Finding nothing does not mean that nothing leaks.

Those on a clustering take `ask`, which carries a request to a client and returns its answer, or None if the client
refuses. All requests stay within the client's limits. Each returns candidates for rows; the caller compares them with
the real rows. Those on a map read what FedNE sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.federated.clustering import protocol
from foveate.federated.clustering.distances import Floats
from foveate.federated.clustering.options import resolve
from foveate.federated.embedding.client import build_encoder
from foveate.federated.embedding.grids import CoordinateGrid
from foveate.federated.embedding.networks import load_flat
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.training import mean_repulsion
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
                # No point lies beyond the threshold: the second center got nothing.
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
                # Thresholds come nearer, so further ones have the points of this one and more.
                break
    return rows


def unused_features(
    before_P: NDArray[np.floating], after_P: NDArray[np.floating], options: EmbeddingOptions, features: int
) -> NDArray[np.bool_]:
    """Return which features are 0 in every point of the client, by its weights before and after training: [features].

    Where a feature is 0 throughout, the first layer's weights on it have no gradient and come back unchanged, bit for
    bit. On images these are the pixels that nobody at the client ever inked; on counts, the kinds that nobody has.
    """
    network = build_encoder(options, features)
    # The first parameter is the first layer's weight [hidden, features].
    first = next(network.parameters())
    load_flat(network, before_P)
    before = first.detach().clone()
    load_flat(network, after_P)
    return (first.detach() == before).all(dim=0).numpy()


def positions_from_field(
    field_G: NDArray[np.floating],
    grid: CoordinateGrid,
    points: int,
    generator: np.random.Generator,
    *,
    kernel: str = "shifted",
    starts: int = 6,
    steps: int = 300,
) -> NDArray[np.float64]:
    """Map positions [points, d] whose field is nearest to the one that was sent; the best of several random starts.

    The number of points is known: every client reports it.
    """
    queries = torch.from_numpy(grid.points_Gd)
    targets = torch.from_numpy(np.asarray(field_G, dtype=np.float64))
    box = grid.box_2d
    best, best_error = np.zeros((points, box.shape[1])), np.inf
    for _ in range(starts):
        z_Nd = torch.from_numpy(generator.uniform(box[0], box[1], (points, box.shape[1]))).requires_grad_()
        error = _descend(z_Nd, queries, targets, steps, kernel, reach=float((box[1] - box[0]).max()))
        if error < best_error:
            best, best_error = z_Nd.detach().numpy().copy(), error
    return best


def _descend(z_Nd: Tensor, queries: Tensor, targets: Tensor, steps: int, kernel: str, *, reach: float) -> float:
    # Steps in proportion to the map: the same 300 steps cross a small map and a large one.
    optimizer = torch.optim.Adam([z_Nd], lr=0.02 * reach)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (mean_repulsion(queries, z_Nd, kernel=kernel) - targets).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()
