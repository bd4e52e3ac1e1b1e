"""Attacks of a server on jobs whose network it chooses: maps and encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from attacked_client import (
    BOX,
    EMBEDDED,
    FIELD,
    MIN_COUNT,
    SURROGATE,
    TRAIN_FEATURES,
    TRAIN_MAP,
    Reading,
    Table,
    Victim,
    draw_direction,
)
from clustering_attacks import bisect_oracle

from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import DeepOptions
from foveate.federated.deep.protocol import embedded_request, train_request
from foveate.federated.embedding.grids import grid_between
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.messages import Message

# Maps


def make_map_request(kind: str, options: EmbeddingOptions, weights: Table, **arrays: Table) -> Message:
    text = options.model_dump_json()
    return Message(kind, 0, {"encoder": weights.astype(options.precision), **arrays}, {"options": text})


def _stack(layers: Iterable[tuple[Table, Table]]) -> Table:
    """Weights and biases of layers as the vector that is sent."""
    return np.concatenate([part.ravel() for layer in layers for part in layer])


def spotlight(direction_D: Table, slabs: list[tuple[float, float]], columns: list[int | None]) -> list[Any]:
    """Layers whose output is 0 but for points within slabs of a direction: there `column` + 40, or 40 for None.

    Units that are constant for nearly all points: what is left of a mean over ten of them is the one that is not.
    """
    width, up, gate = len(direction_D), 50.0, 1000.0
    first, first_bias = [], []
    for center, half in slabs:
        # A trapezoid of four ramps: 1 within the slab, 0 beyond twice its width.
        for shift in (2.0, 1.0, -1.0, -2.0):
            first.append(direction_D / half)
            first_bias.append(shift - center / half)
    for column in range(width):
        first.append(np.eye(width)[column])
        first_bias.append(up)
    second = np.zeros((len(slabs), len(first)))
    second_bias = np.zeros(len(slabs))
    for number, column in enumerate(columns):
        second[number, 4 * number : 4 * number + 4] = gate * np.array([1.0, -1.0, -1.0, 1.0])
        second_bias[number] = 40.0 - gate
        if column is not None:
            second[number, 4 * len(slabs) + column] = 1.0
            second_bias[number] -= up
    return [(np.array(first), np.array(first_bias)), (second, second_bias), (np.eye(len(slabs)), np.zeros(len(slabs)))]


def read_boxes(kind: str, max_rows: int = 12) -> Callable[[Victim], Reading]:
    """Boxes of a map that is constant for all points but one, by means of the ten outermost positions."""

    def attack(victim: Victim) -> Reading:
        reading = Reading()
        more = {"surrogate": "network", "grid": "own", "max_points": 16, "min_axis_points": 2, "max_axis_points": 4}
        width = victim.width
        options = EmbeddingOptions(hidden=(8 + width, 2), precision="float64", **(more if kind == SURROGATE else {}))
        direction_D = draw_direction(width)

        def tops(slabs: list[tuple[float, float]], columns: list[int | None]) -> Table | None:
            """Sum of the ten highest positions by axis."""
            answer = victim.ask(make_map_request(kind, options, _stack(spotlight(direction_D, slabs, columns))))
            if answer is None:
                return None
            low, high = answer.array("box").astype(np.float64)
            # An own grid is twice as wide as the box.
            return MIN_COUNT * ((3 * high + low) / 4 if kind == SURROGATE else high)

        single = []
        step = 0.02 if kind == BOX else 0.1
        for center in np.arange(1.0, 4.0, 2 * step):
            slabs = [(center, 0.4 * step), (center + step, 0.4 * step)]
            top = tops(slabs, [None, None])
            if top is None:
                break
            single += [slab for slab, value in zip(slabs, top, strict=True) if abs(value - 40) < 1e-3]
        for slab in single[:max_rows]:
            row = np.full(width, np.nan)
            for column in range(0, width, 2):
                pair: list[int | None] = [column, min(column + 1, width - 1)]
                top = tops([slab, slab], pair)
                if top is not None:
                    row[pair] = top - 40
            reading.rows.append(row)
        return reading

    return attack


def read_field(victim: Victim, *, stretch: float = 2000.0, reach: float = 4.5) -> Reading:
    """Deconvolution of a field of known kernel: the map is a line, stretched until its points are apart.

    Each further question moves every point a little by two columns of its row.
    """
    width, points = victim.width, victim.points
    options = EmbeddingOptions(hidden=(), precision="float64", max_axis_points=200)
    direction_D = draw_direction(width)
    step = 0.7
    axis = np.arange(-stretch * reach, stretch * reach, step)
    side = np.array([-1.0, 0.0, 1.0, 2.0])
    box = np.array([[axis[0], side[0]], [axis[-1], side[-1]]])

    def positions(columns: tuple[int, int] | None, guess_N: Table | None) -> Table | None:
        weights = np.zeros((2, width))
        weights[0] = stretch * direction_D
        if columns is not None:
            weights[0, columns[0]] += 1.0
            weights[1, columns[1]] += 1.0
        request = make_map_request(
            FIELD, options, _stack([(weights, np.zeros(2))]), box=box, counts=np.array([len(axis), len(side)])
        )
        answer = victim.ask(request)
        if answer is None:
            return None
        grid = grid_between(box, np.array([len(axis), len(side)]))
        table = answer.array("field").astype(np.float64).reshape(len(side), len(axis)) * points
        if table.shape != (len(side), len(axis)):
            return None
        return _deconvolve(table, grid.axes, points, guess_N)

    start = positions(None, None)
    if start is None:
        return Reading()
    rows = np.full((points, width), np.nan)
    for column in range(0, width, 2):
        pair = (column, min(column + 1, width - 1))
        z_Nd = positions(pair, start[:, 0])
        if z_Nd is not None:
            rows[:, pair[0]] = z_Nd[:, 0] - start[:, 0]
            rows[:, pair[1]] = z_Nd[:, 1]
    return Reading(list(rows))


def _repulsion(across: Table, along: Table) -> Table:
    squared = across**2 + along**2
    return np.log((2 + squared) / (1 + squared))


def _deconvolve(table: Table, axes: tuple[Table, ...], points: int, guess_N: Table | None) -> Table:
    """Positions [N, 2] near a line whose kernels add up to a table [rows, columns]."""
    columns, rows = axes
    if guess_N is None:
        rest = table[1].copy()
        guess_N = np.zeros(points)
        for number in range(points):
            guess_N[number] = columns[rest.argmax()]
            rest -= _repulsion(columns - guess_N[number], 0.0)
    z_Nd = np.column_stack([guess_N, np.zeros(points)])
    step = columns[1] - columns[0]
    for _ in range(40):
        model = sum(_repulsion(columns[None] - x, rows[:, None] - y) for x, y in z_Nd)
        miss = table - model
        # Neighbors on the line are solved together, in windows around them.
        order = np.argsort(z_Nd[:, 0])
        groups = np.split(order, np.flatnonzero(np.diff(z_Nd[order, 0]) > 12) + 1)
        largest = 0.0
        for group in groups:
            low = int(np.searchsorted(columns, z_Nd[group, 0].min() - 6))
            high = int(np.searchsorted(columns, z_Nd[group, 0].max() + 6))
            across = columns[None, None, low:high] - z_Nd[group, 0, None, None]
            along = rows[None, :, None] - z_Nd[group, 1, None, None]
            squared = across**2 + along**2
            factor = -2 / ((2 + squared) * (1 + squared))
            # Derivatives by the position, not by the query: another sign.
            jacobian = np.stack([-factor * across, -factor * along]).reshape(2 * len(group), -1)
            change = np.linalg.lstsq(jacobian.T, miss[:, low:high].ravel(), rcond=None)[0]
            change = np.clip(change, -step, step).reshape(2, len(group)).T
            z_Nd[group] += change
            largest = max(largest, float(np.abs(change).max()))
        if largest < 1e-10:
            break
    return z_Nd


def _graded(direction_D: Table, units: int, reach: float, size: float) -> tuple[Table, Table]:
    """A first layer of equal rows and graded biases: unit k is on beyond its threshold."""
    return np.tile(size * direction_D, (units, 1)), size * np.linspace(reach, -reach, units)


def _single_rows(weight_HD: Table, bias_H: Table) -> list[Table]:
    """Differences of the gradients of neighboring units: the rows between their thresholds."""
    weight_HD, bias_H = np.diff(weight_HD, axis=0), np.diff(bias_H)
    used = np.abs(bias_H) > 1e-6 * np.abs(bias_H).max()
    return list(weight_HD[used] / bias_H[used, None])


def invert_map_training(victim: Victim, rounds: int = 3, units: int = 1000) -> Reading:
    """Gradient inversion over several rounds: shadow units that single out rows, in one full step of Adam each."""
    reading = Reading()
    width = victim.width
    options = EmbeddingOptions(hidden=(units,), precision="float64", batch_points=1024)
    rate, size, out = 1e12, 1e5, 1e-8
    for round in range(rounds):
        first, bias = _graded(draw_direction(width, round), units, 4.0, size)
        weights = _stack([(first, bias), (np.full((2, units), out), np.zeros(2))])
        request = replace(make_map_request(TRAIN_MAP, options, weights), round=round)
        request = replace(request, values={**request.values, "rate": rate, "share": 1.0})
        answer = victim.ask(request)
        if answer is None:
            continue
        step = (answer.array("encoder").astype(np.float64) - weights) / rate
        # The first step of Adam is g / (|g| + 1e-8), which is undone.
        with np.errstate(all="ignore"):
            gradient = 1e-8 * step / (1 - np.minimum(np.abs(step), 1 - 1e-16))
        split = units * width
        reading.rows += _single_rows(gradient[:split].reshape(units, width), gradient[split : split + units])
    return reading


# Encoders


def make_features_request(kind: str, options: DeepOptions, weights: Table, centers: Table | None = None) -> Message:
    weights = weights.astype(np.float32)
    if kind == EMBEDDED:
        request = embedded_request(weights, options.clustering_options(), 0, 0)
    else:
        assert centers is not None
        request = train_request(weights, centers, DeepJob(options).rounds.training, options.seed, 0)
    return replace(request, values={**request.values, "options": options.model_dump_json()})


def invert_features_training(victim: Victim, rounds: int = 3, hidden: int = 1024) -> Reading:
    """Gradient inversion over several rounds, by units that are on beyond graded thresholds: a step of SGD each."""
    reading = Reading()
    width = victim.width
    options = DeepOptions(
        clusters=2, width=2, hidden=hidden, batch_size=1024, learning_rate=10.0, weight_decay=0.0, min_count=MIN_COUNT
    )
    size = 1e-4
    for round in range(rounds):
        first, bias = _graded(draw_direction(width, round), hidden, 4.5, size)
        last = np.stack([np.full(hidden, 1 / (hidden * size)), np.zeros(hidden)])
        weights = _stack([(first, bias), (last, np.array([0.0, 1.0]))]).astype(np.float32)
        answer = victim.ask(replace(make_features_request(TRAIN_FEATURES, options, weights, np.eye(2)), round=round))
        if answer is None:
            continue
        change = answer.array("weights").astype(np.float64) - weights.astype(np.float64)
        split = hidden * width
        reading.rows += _single_rows(change[:split].reshape(hidden, width), change[split : split + hidden])
    return reading


def read_single_embeddings(victim: Victim) -> Reading:
    """As many clusters of embeddings as rows, by a network that only moves and copies the row."""
    reading = Reading()
    width = victim.width
    options = DeepOptions(clusters=victim.points, width=width + 1, hidden=width, min_count=1, n_init=1)
    up = 50.0
    last = np.concatenate([np.eye(width), np.zeros((1, width))])
    layers = [(np.eye(width), np.full(width, up)), (last, np.r_[np.full(width, -up), 3.0])]
    for own in (options, options.model_copy(update={"min_count": MIN_COUNT, "clusters": 100})):
        if answer := victim.ask(make_features_request(EMBEDDED, own, _stack(layers))):
            centers = answer.array("centers")
            reading.rows += list(3.0 * centers[:, :width] / centers[:, width:])
    return reading


def scan_thresholds(victim: Victim, columns: int = 13, hidden: int = 1000) -> Reading:
    """Centers of embeddings relu(x - t) at many thresholds: their mean has a kink at every value of a column."""
    reading = Reading()
    width = victim.width
    options = DeepOptions(clusters=1, width=hidden + 1, hidden=hidden, min_count=MIN_COUNT, n_init=1)
    thresholds = np.linspace(-4, 4.5, hidden)
    size, constant = 1e-3, 10.0
    for column in range(min(columns, width)):
        first = np.zeros((hidden, width))
        first[:, column] = size
        last = np.concatenate([np.eye(hidden), np.zeros((1, hidden))])
        last_bias = np.r_[np.zeros(hidden), constant]
        answer = victim.ask(
            make_features_request(EMBEDDED, options, _stack([(first, -size * thresholds), (last, last_bias)]))
        )
        if answer is None:
            continue
        center = answer.array("centers")[0]
        if center.shape != (hidden + 1,):
            continue
        mean_H = victim.points * constant * center[:-1] / (size * center[-1])
        reading.cells += [(column, value) for value in _read_steps(thresholds, mean_H)]
    return reading


def _read_steps(thresholds: Table, sum_H: Table) -> list[float]:
    """Kinks of a sum of relu(x - t), whose slope is minus the number of values beyond t."""
    count = -np.diff(sum_H) / np.diff(thresholds)
    whole = np.abs(count - np.round(count)) < 0.02
    values = []
    for number in range(1, len(count) - 1):
        before, after = round(count[number - 1]), round(count[number + 1])
        if whole[number - 1] and whole[number + 1] and before - after == 1:
            # One value lies in this interval; the share of the step beyond it says where.
            values.append(thresholds[number] + (count[number] - after) * (thresholds[number + 1] - thresholds[number]))
    return values


def search_by_overflow(kind: str) -> Callable[[Victim], Reading]:
    """Weights that overflow exactly where a value exceeds a threshold: NaN in the answer, or a failure."""

    def attack(victim: Victim) -> Reading:
        reading = Reading()
        width = victim.width
        for column in range(2):

            def overflows(threshold: float, column: int = column) -> bool:
                # relu(1e30 (x - t)) times 1e30 is 0 or infinite in float32, and infinity less infinity is NaN.
                first = np.zeros((2, width))
                first[:, column] = 1e30
                layers = [(first, np.full(2, -1e30 * threshold)), (np.array([[1e30, -1e30]] * 2), np.zeros(2))]
                if kind in (EMBEDDED, TRAIN_FEATURES):
                    options = DeepOptions(clusters=1, width=2, hidden=2, min_count=MIN_COUNT, n_init=1)
                    layers[1] = (layers[1][0], np.ones(2))
                    request = make_features_request(kind, options, _stack(layers), np.eye(2)[:1])
                else:
                    options = EmbeddingOptions(hidden=(2,), max_axis_points=13)
                    arrays = {"box": np.array([[-1.0, -1.0], [1.0, 1.0]]), "counts": np.array([13, 13])}
                    request = make_map_request(kind, options, _stack(layers), **(arrays if kind == FIELD else {}))
                    if kind == TRAIN_MAP:
                        request = replace(request, values={**request.values, "rate": 1e-3, "share": 1.0})
                with np.errstate(all="ignore"):
                    answer = victim.ask(request)
                if answer is not None and kind == FIELD:
                    # A point at infinity repels nothing: the field where all others are falls by one part of n. On
                    # some processors it is NaN and so is the field.
                    largest = float(answer.array("field").max())
                    return not np.isfinite(largest) or largest < np.log(2) * (1 - 0.5 / victim.points)
                return answer is None or not all(np.isfinite(array).all() for array in answer.arrays.values())

            value = bisect_oracle(overflows, -6.0, 6.0, steps=24)
            if value is not None:
                reading.cells.append((column, value))
        return reading

    return attack
