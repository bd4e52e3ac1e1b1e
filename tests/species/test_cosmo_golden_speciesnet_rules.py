"""The golden `speciesnet_rules.json`: 72 decisions of SpeciesNet's published functions on invented maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import UserError
from foveate.species.speciesnet_rules import SpeciesNetRules

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "cosmo" / "speciesnet_rules.json").read_text())


def decide(case: dict[str, Any]) -> object:
    rules = SpeciesNetRules(
        GOLDEN["taxonomy_map"],
        GOLDEN["geofence_map"],
        country=case.get("country") or "",
        state=case.get("admin1") or "",
        enabled=case.get("enable_geofence", True),
    )
    match case["function"]:
        case "ancestor":
            return rules.find_ancestor(case["label"], case["level"])
        case "should_geofence":
            return rules.is_blocked(case["label"])
        case "roll_up":
            return rules.roll_up(case["labels"], case["scores"], case["levels"], threshold=case["threshold"])
        case "geofence":
            return rules.apply_geofence(case["labels"], case["scores"])
    detection = {"detection": case["detection_label"], "confidence": case["detection_conf"]}
    return rules.combine(case["labels"], case["scores"], **detection)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_decision(case: dict[str, Any]) -> None:
    if "raises" in case["expected"]:
        with pytest.raises(UserError):
            decide(case)
        return
    expected = case["expected"]["result"]
    if isinstance(expected, dict):
        expected = [expected["class"], expected["score"], expected["source"]]
    result = decide(case)
    if not isinstance(expected, list):
        assert result == expected
        return
    assert isinstance(result, tuple)
    assert [result[0], result[2]] == [expected[0], expected[2]]
    assert result[1] == pytest.approx(expected[1], abs=1e-12)


def test_all_cases_are_there() -> None:
    assert len(GOLDEN["cases"]) == 72
