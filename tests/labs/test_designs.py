"""Designs of studies: claims name rows and measures that are there, and what must hold can fail."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from foveate_labs.studies import cosmo, ferret, slowfast
from foveate_labs.studies.study import judge

DESIGNS = pytest.mark.parametrize("module", [cosmo, ferret, slowfast], ids=lambda module: module.__name__)


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
