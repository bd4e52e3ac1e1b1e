"""Compare many methods on many tasks: means of groups, spread, Pareto front, operating points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from foveate.core.errors import UserError


def group_means(values: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the mean of each group's tasks, their mean ("mean of groups") and that of all tasks ("mean").

    Args:
        values: by task. groups: the tasks of each group; a task of no group counts in "mean" alone.

    Raises:
        UserError: when a group names a task without a value.
    """
    means: dict[str, float] = {}
    for group, tasks in groups.items():
        missing = [task for task in tasks if task not in values]
        if missing or not tasks:
            raise UserError(f"group '{group}': no value for task '{missing[0] if missing else ''}'")
        means[group] = float(np.mean([values[task] for task in tasks]))
    if groups:
        # Here each group has the same weight, whatever its number of tasks; in "mean" each task does.
        means["mean of groups"] = float(np.mean([means[group] for group in groups]))
    means["mean"] = float(np.mean(list(values.values())))
    return means


def relative_spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation over the mean."""
    if len(values) < 2:
        raise UserError(f"a spread needs at least two values (got {len(values)})")
    return float(np.std(values, ddof=1) / np.mean(values))


def argmax_last(values: Sequence[float]) -> int:
    """Return the index of the largest value, of equal ones the last: the selection rule of the study."""
    if not len(values):
        raise UserError("no values: nothing to choose from")
    array = np.asarray(values, dtype=np.float64)
    return int(np.flatnonzero(array == array.max())[-1])


def pareto_mask(costs: ArrayLike, values: ArrayLike) -> list[bool]:
    """Mark the Pareto front: no other point has at most the cost and at least the value and is better in one."""
    cost, value = np.asarray(costs, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if cost.shape != value.shape or cost.ndim != 1:
        raise UserError(
            f"costs and values: expected two lists of one length (got {list(cost.shape)} and {list(value.shape)})"
        )
    # All pairs at once; there are tens of methods.
    no_worse = (cost[:, None] <= cost) & (value[:, None] >= value)
    better = (cost[:, None] < cost) | (value[:, None] > value)
    beaten = np.asarray((no_worse & better).any(axis=0))
    return (~beaten).tolist()


def operating_points(
    alphas: Sequence[float], inside: Sequence[float], outside: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Return the points of a curve between two models that are best on in-distribution and on shifted data.

    Of equal ones the first, nearest to the original model. On test sets both are oracles.
    """
    if not len(alphas) == len(inside) == len(outside) or not len(alphas):
        raise UserError(
            f"a curve needs as many values as alphas (got {len(inside)} and {len(outside)} for {len(alphas)} alphas)"
        )
    points = {}
    for name, values in (("inside", inside), ("outside", outside)):
        index = int(np.argmax(np.asarray(values)))
        points[name] = {"alpha": alphas[index], "inside": inside[index], "outside": outside[index]}
    return points
