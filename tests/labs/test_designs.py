"""Designs of studies: claims name rows and measures that are there, and what must hold can fail."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from foveate.core.experiment_grid import Cell
from foveate_labs.studies import cosmo, cosmo_encoder, ferret, slowfast, tour
from foveate_labs.studies.runner import run_study
from foveate_labs.studies.study import judge

DESIGNS = pytest.mark.parametrize(
    "module", [cosmo, cosmo_encoder, ferret, slowfast], ids=lambda module: module.__name__
)


@DESIGNS
def test_claims_name_rows_of_their_condition_and_measures(module: Any) -> None:
    design, full = module.DESIGN, module.FULL
    measures = {measure.key for measure in design.measures}
    rows = {row.key: row for row in design.rows}
    assert len(rows) == len(design.rows)
    assert len({(claim.condition, claim.text) for claim in design.claims}) == len(design.claims)
    for claim in design.claims:
        variants = set(module.STUDY.variants_of(claim.condition, full))
        assert {rows[claim.better].trained_as, rows[claim.worse].trained_as} <= variants, claim.text
        assert {claim.measure, claim.worse_measure or claim.measure} <= measures, claim.text
    texts = {claim.text for claim in design.claims}
    for paper in design.paper_claims:
        assert paper.untestable or {paper.claim, *filter(None, [paper.control])} <= texts
    assert full.seeds >= 5


@DESIGNS
def test_what_must_hold_fails_where_everything_is_alike(module: ModuleType) -> None:
    values = {
        (condition.key, row.key): {seed: {m.key: 0.3 + 0.001 * seed for m in module.MEASURES} for seed in range(5)}
        for condition in module.CONDITIONS
        for row in module.ROWS
    }
    for claim in module.CLAIMS:
        judged = judge(claim, values)
        assert judged is not None
        assert judged["verdict"] == ("shown" if claim.margin < 0 else "not shown"), claim.text


def test_the_study_of_the_tour_reads_one_training_under_each_condition() -> None:
    table = [
        {"question": "what is in this box, of all names: top-1", "data": "seen",
         "values": {"m": {"value": 0.5}, "m_shuffled": {"value": 0.1}}},
        {"question": "where is it: IoU at least .5", "data": "unseen",
         "values": {"m_head": {"value": 0.3}, "center": {"value": 0.05}, "random": {"value": 0.01}}},
        {"question": "which image belongs to this text: R@10", "data": "emoji images", "values": {"m": {"value": 0.4}}},
        {"question": "something else", "data": "seen", "values": {"m": {"value": 0.9}}},
    ]  # fmt: skip
    values = tour.pick(table)
    assert values == {
        "seen|name": 0.5,
        "seen|shuffled/name": 0.1,
        "unseen|iou50": 0.3,
        "unseen|center/iou50": 0.05,
        "emoji images|image10": 0.4,
    }
    crops = {"seen|crop/name": 0.2, "seen|name": 0.1}
    by_row = tour.TourStudy.row_values({Cell(0, "all", "cloc"): values, Cell(0, "all", "clip"): crops})
    assert by_row["seen", "cloc"] == {0: {"name": 0.5}}
    assert by_row["seen", "cloc-shuffled"] == {0: {"name": 0.1}}
    assert by_row["unseen", "center"] == {0: {"iou50": 0.05}}
    assert by_row["seen", "clip-crop"] == {0: {"name": 0.2}}
    rows, measures = {row.key for row in tour.ROWS}, {measure.key for measure in tour.MEASURES}
    for claim in tour.DESIGN.claims:
        assert {claim.better, claim.worse} <= rows
        assert claim.measure in measures
    assert len(tour.TourStudy.cells(tour.FULL, seed=0, datasets=())) == 2 * tour.FULL.seeds


@pytest.mark.slow
def test_a_tiny_study_of_the_tour(tmp_path: Path) -> None:
    scale = tour.TourScale(train_scenes=200, test_scenes=50, image_size=64, steps=4, seeds=1)
    result = run_study("tour", tmp_path / "run", scale=scale)
    assert result["trainings"] == 2
    assert {entry["row"] for entry in result["table"] if entry["condition"] == "seen"} == {row.key for row in tour.ROWS}
    assert (tmp_path / "run" / "cloc-seed0" / "model" / "config.json").is_file(), "for benchmarks"
