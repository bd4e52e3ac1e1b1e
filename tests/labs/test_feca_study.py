"""The study `feca`: its design holds together, a cell measures every row, its controls are what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell
from foveate_labs.studies import feca
from foveate_labs.studies.study import row_values, summary
from naming import raises_naming


def test_claims_name_rows_measures_and_conditions_that_exist() -> None:
    design = feca.DESIGN
    rows, measures = {row.key for row in design.rows}, {one.key for one in design.measures}
    for claim in design.claims:
        assert {claim.better, claim.worse} <= rows
        assert claim.measure in measures
        assert claim.condition in feca.WORLDS
    assert rows == set(feca.METHODS)
    assert set(feca.QUICK.conditions) <= set(feca.WORLDS) == {condition.key for condition in design.conditions}


def test_mnist_needs_its_package_and_identity_keeps_finished_cells() -> None:
    whole, without = (feca.STUDY.cells(feca.FULL, seed=0, datasets=datasets) for datasets in (("mnist",), ()))
    assert len(whole) - len(without) == 5 * 3
    assert not [cell for cell in without if "mnist" in cell.condition]
    everything = feca.STUDY.cells(feca.FULL, seed=0, datasets=tuple(feca.point_sets.OPTIONAL))
    assert {cell.condition for cell in everything} == set(feca.WORLDS)
    assert feca.STUDY.identity(feca.FULL, datasets=()) == feca.STUDY.identity(feca.QUICK, datasets=("mnist",))
    with raises_naming(UserError, "feca"):
        feca.STUDY.find_datasets((Path("x"),))


@pytest.mark.parametrize(("name", "groups"), [("clear", 15), ("near", 15), ("uneven", 8)])
def test_drawn_sets(name: str, groups: int) -> None:
    points, labels = feca.drawn(name, 3)
    again, _ = feca.drawn(name, 3)
    np.testing.assert_array_equal(points, again)
    assert len(np.unique(labels)) == groups
    assert len(points) == len(labels)
    means = np.stack([points[labels == one].mean(0) for one in range(groups)])
    gaps = np.linalg.norm(means[:, None] - means[None], axis=-1)[~np.eye(groups, dtype=bool)]
    assert gaps.min() > {"clear": 1.5, "near": 1.1, "uneven": 5.0}[name]


def test_a_cell_measures_every_row(tmp_path: Path) -> None:
    scale = replace(feca.QUICK, seeds=1)
    study = feca.STUDY(tmp_path, scale, {})
    study.prepare()
    cell = Cell(0, "clear-few", "all")
    found = row_values(feca.ROWS, [(cell, study.measure(cell))])
    for row in feca.ROWS:
        values = found["clear-few", row.key][0]
        assert {"nmi", "ari", "right", "tightness", "kilobytes"} <= set(values)
    assert found["clear-few", "alone"][0]["kilobytes"] == 0
    assert found["clear-few", "consensus"][0]["nmi"] > found["clear-few", "alone"][0]["nmi"] + 0.1
    assert found["clear-few", "one-shot"][0]["kilobytes"] < found["clear-few", "consensus"][0]["kilobytes"]
    assert summary(feca.DESIGN, found)["table"]
