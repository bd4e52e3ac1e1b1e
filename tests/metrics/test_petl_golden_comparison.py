"""Means of groups, spread, points on curves and the unbeaten against the study's published results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.metrics.agreement import argmax_last, group_means, operating_points, pareto_mask, relative_spread
from naming import raises_naming

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "petl"


def stored(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


VTAB, WISE, MANY = stored("vtab1k_results"), stored("clip_wise_results"), stored("manyshot_results")["results"]
OUTSIDE = ("eval_imagenet-v2", "eval_imagenet-r", "eval_imagenet-s", "eval_imagenet-a")
OURS = {"mean of groups": "mean_of_groups", "mean": "mean_of_19"}


@pytest.mark.parametrize("name", VTAB["results"])
@pytest.mark.parametrize("which", ["last", "best"])
def test_means_of_groups(name: str, which: str) -> None:
    values = {task: entry[which] for task, entry in VTAB["results"][name].items()}
    found = {OURS.get(key, key): value for key, value in group_means(values, VTAB["groups"]).items()}
    assert found == pytest.approx(VTAB["summary"][name][which], abs=6e-5)


@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize("group", ["natural", "specialized", "structured", "mean_of_groups"])
def test_spread_of_thirteen_methods(which: str, group: str) -> None:
    values = [VTAB["summary"][name][which][group] for name in VTAB["methods_in_rsd"]]
    wanted = VTAB["relative_std_percent_13_methods"][which][group]
    assert 100 * relative_spread(values) == pytest.approx(wanted, abs=6e-4)


CURVES = [(name, kind) for name, kinds in WISE["derived_operating_points"].items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), CURVES)
def test_points_of_a_curve(name: str, kind: str) -> None:
    curve = WISE["results"][name][kind]
    alphas = [number / 10 for number in range(11)]
    outside = np.mean([curve[one] for one in OUTSIDE], axis=0).tolist()
    found = operating_points(alphas, curve["fs-imagenet"], outside)
    for ours, theirs in (("inside", "max_id"), ("outside", "max_ood")):
        wanted = WISE["derived_operating_points"][name][kind][theirs]
        assert found[ours] == pytest.approx(
            {"alpha": wanted["alpha"], "inside": wanted["id"], "outside": wanted["ood"]}, abs=6e-4
        )


@pytest.mark.parametrize("place", MANY)
def test_whoever_is_not_on_the_front_is_beaten_by_somebody_on_it(place: str) -> None:
    costs = [entry["inserted_parameters"] for entry in MANY[place].values()]
    values = [entry["last"] for entry in MANY[place].values()]
    flags = pareto_mask(costs, values)
    front = sorted((cost, value) for cost, value, flag in zip(costs, values, flags, strict=True) if flag)
    assert [value for _, value in front] == sorted(value for _, value in front)
    assert max(values) == front[-1][1]
    assert front[0][0] == 0  # nobody has less than the head alone
    for cost, value, flag in zip(costs, values, flags, strict=True):
        assert flag != any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in front)


def test_mistakes() -> None:
    with raises_naming(UserError, "a", "y"):
        group_means({"x": 1.0}, {"a": ["x", "y"]})
    with pytest.raises(UserError, match="at least two"):
        relative_spread([1.0])
    with pytest.raises(UserError, match="nothing to choose"):
        argmax_last([])
    with pytest.raises(UserError, match="one length"):
        pareto_mask([1, 2], [1])
    with pytest.raises(UserError, match="as many values as alphas"):
        operating_points([0.0], [1.0, 2.0], [1.0])
    assert group_means({"x": 1.0, "y": 3.0}, {}) == {"mean": 2.0}
    assert pareto_mask([1, 1, 2], [5, 6, 6]) == [False, True, False]
