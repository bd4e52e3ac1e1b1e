"""Every row of the table of verdicts, on a file that it is about, with each reader that obeys it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from broken_files import CASES, FILES, Case, write_case
from made_surveys import FORMATS, GOLDEN

from foveate.core.errors import UserError
from foveate.survey.importers.camtrap_package import open_package
from foveate.survey.importers.coco_camera_traps import read_camera_traps
from foveate.survey.importers.results import read_results
from foveate.survey.verdicts import CAMTRAP_DP, COCO, RULES, Judge, LeftOutError, format_names


def read(path: Path, format: str) -> tuple[Counter[str], dict[str, list[str]]]:
    """Return the doubts about a file by their text, and the records that are named."""
    if format == CAMTRAP_DP:
        with open_package(path) as package:
            return Counter(map(str, package.warnings)), {}
    if format == COCO:
        survey = read_camera_traps(path)
        return +survey.further, survey.named
    results = read_results(path)
    return +results.repairs, results.named


def test_every_rule_has_a_case_of_every_format() -> None:
    expected = {(name, format) for name, rule in RULES.items() for format in rule.formats}
    assert {(case.rule, case.format) for case in CASES} == expected


def test_nothing_that_a_public_validator_refuses_is_read_without_a_word() -> None:
    assert all(case.public or RULES[case.rule].verdict != "accept" for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_verdict_is_that_of_the_table(case: Case, tmp_path: Path) -> None:
    path, rule = write_case(case, tmp_path), RULES[case.rule]
    if rule.verdict == "refuse":
        with pytest.raises(UserError, match=r"file\.json: |package: ") as caught:
            read(path, case.format)
        assert len(str(caught.value).splitlines()) == 1
        return
    usual, _ = read(GOLDEN if case.format == CAMTRAP_DP else FORMATS / FILES[case.format], case.format)
    doubts, named = read(path, case.format)
    if case.format != CAMTRAP_DP:
        assert doubts[rule.outcome] > usual[rule.outcome]
    elif case.rule != "empty-and-species":  # the import counts it, see test_camtrap_dp
        assert bool(doubts - usual) == (rule.verdict == "warn")
    assert rule.verdict != "quarantine" or named[rule.outcome]


def test_what_is_read_nevertheless_is_never_refused_and_the_reverse(tmp_path: Path) -> None:
    judge = Judge(tmp_path / "file.json")
    with pytest.raises(AssertionError):
        judge.count("score")
    with pytest.raises(AssertionError):
        judge.reject("integer-score", "images[0]", "is an integer")
    assert isinstance(judge.reject("score", "images[0]", "is NaN"), UserError)
    assert isinstance(judge.reject("not-processed", "images[0]", "is null", name="a.jpg"), LeftOutError)
    assert format_names(judge.named) == [f"{RULES['not-processed'].outcome}: a.jpg"]
