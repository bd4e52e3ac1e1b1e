"""The study `calibration`: its design holds together, and a small run measures every row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate.core.experiment_grid import Cell, CellStore
from foveate_labs.studies import calibration, calibration_worlds
from foveate_labs.studies.study import row_values, summary
from foveate_labs.worlds import builtin as glyph_records


def test_claims_name_rows_and_measures_that_exist() -> None:
    design = calibration.DESIGN
    rows, measures = {row.key for row in design.rows}, {one.key for one in design.measures}
    for claim in design.claims:
        assert {claim.better, claim.worse} <= rows
        assert claim.measure in measures
    assert {row.trained_as for row in design.rows} == set(calibration.VARIANTS)
    # The two cases with half of the classes, tuned safely, are cells of the main comparison.
    num_cells = 2 * len(calibration.VARIANTS) + len(calibration.CASES) - 2
    cells = calibration.STUDY.cells(calibration.FULL, seed=0, datasets=())
    assert len(cells) == len(set(cells)) == 5 * num_cells


def test_the_table_of_cases_pairs_the_estimates_by_split(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells", calibration.STUDY.identity(calibration.FULL, datasets=()))
    for seed, gain in enumerate((0.02, 0.03, 0.04)):
        values = {"after/yy": 0.40, "alg/yy": 0.39, "best_gap/yy": 0.39 + gain, "star/yy": 0.5}
        values |= {"pcv/yy": 0.45} if seed else {}
        store.finish(Cell(seed, "digits", "safe-5"), values, 1.0)
    gains, table = calibration.STUDY(tmp_path, calibration.FULL).further_tables()
    row = dict(zip(gains["columns"], gains["lines"][1], strict=True))
    assert (row["cases"], row["splits"], row["gamma*"]) == ("1", "3", "+0.100")
    assert row["ALG"] == "-0.010 (least -0.010, fell in 3)"
    assert row["best gap"] == "+0.020 (least +0.010, fell in 0)"
    assert gains["lines"][0][1:4] == ["0", "0", "-"]
    (line,) = table["lines"]
    row = dict(zip(table["columns"], line, strict=True))
    assert (row["seen"], row["ALG"], row["best gap"], row["PCV"]) == ("5 of 10", ".390", ".420", ".450")
    assert row["best gap - ALG"].startswith("+0.030 (+0.005 to +0.055")
    assert (row["lowered"], row["splits"], row["default"]) == ("3, 0, 0", "3", "best gap")


def test_rows_come_from_their_cells() -> None:
    values = {"before/yy": 0.4, "after/yy": 0.41, "pcv/yy": 0.5, "shuffled/yy": 0.3}
    done = {Cell(seed, "glyphs", "safe"): values for seed in (0, 1)}
    done[Cell(0, "glyphs", "hot")] = {"before/yy": 0.4, "after/yy": 0.2, "star/yy": 0.25}
    found = row_values(calibration.ROWS, done.items())
    assert found["glyphs", "pcv"] == {0: {"yy": 0.5}, 1: {"yy": 0.5}}
    assert found["glyphs", "hot-star"] == {0: {"yy": 0.25}}
    assert found["glyphs", "hot"] == {0: {"yy": 0.2}}
    claims = summary(calibration.DESIGN, found)["claims"]
    verdict = {claim["text"]: claim["verdict"] for claim in claims}
    assert verdict["PCV gains overall accuracy"] == "shown"
    assert verdict["Control: the same gamma on classes drawn at random gains less"] == "shown"


def test_other_rates_are_another_identity() -> None:
    assert calibration.STUDY.identity(calibration.FULL, datasets=()) == calibration.STUDY.identity(
        calibration.QUICK, datasets=()
    )
    other = replace(calibration.FULL, epochs=3)
    assert calibration.STUDY.identity(other, datasets=()) != calibration.STUDY.identity(calibration.FULL, datasets=())


@pytest.mark.slow
def test_a_small_run_measures_every_row(tmp_path: Path) -> None:
    scale = calibration.CalibrationScale(
        source_per_class=20, target_per_class=6, pretraining_epochs=1, epochs=1, pseudo_splits=1, seeds=1
    )
    study = calibration.STUDY(tmp_path, scale, {})
    study.prepare()
    world = calibration_worlds.open_glyphs(tmp_path / "glyphs")
    assert isinstance(world, calibration_worlds.FineTuningWorld)
    assert world.classes == len(glyph_records.CLASSES)
    emoji = calibration_worlds.open_emoji(tmp_path / "emoji")
    assert isinstance(emoji.before.network, calibration_worlds.FeatureNetwork)
    assert np.unique(emoji.train.labels_N).size == np.unique(emoji.test.labels_N).size == emoji.classes > 10
    done = {cell: study.measure(cell) for cell in calibration.STUDY.cells(scale, seed=0, datasets=())}
    store = CellStore(tmp_path / "cells", {})
    for cell, values in done.items():
        store.finish(cell, values, 1.0)
    found = row_values(calibration.ROWS, done.items())
    assert calibration_worlds.open_world(tmp_path / "digits").classes == 10
    _, table = study.further_tables()
    assert len(table["lines"]) == len(calibration.CASES)
    for condition in ("glyphs", "emoji"):
        feasible = found[condition, "pcv"][0]["feasible"]
        for row in calibration.ROWS:
            measured = {"yy", "uy"} <= set(found[condition, row.key][0])
            assert measured or (row.key in ("pcv", "shuffled") and feasible == 0), (condition, row.key)
