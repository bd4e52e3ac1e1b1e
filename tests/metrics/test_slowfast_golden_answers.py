"""Choices and judges of videos: the official evaluators' numbers, published logs, and the strict readers."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.metrics.answers import (
    VCGBENCH_ASPECTS,
    OfficialVerdictScores,
    choice_accuracy,
    evidence_recall,
    parse_letter,
    parse_letter_official,
    parse_verdict,
    score_verdicts,
    score_verdicts_official,
    vcgbench_mean,
)
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens" / "slowfast"
SCORER = json.loads((GOLDENS / "mc_scorer.json").read_text())
LOGS = json.loads((GOLDENS / "mc_logs.json").read_text())["sources"]
JUDGE = json.loads((GOLDENS / "judge.json").read_text())


def letter(index: int | None) -> str | None:
    return None if index is None else "abcdefghij"[index]


@pytest.mark.parametrize("case", [*SCORER["cases"], *SCORER["own_candidates"]], ids=lambda case: repr(case["text"]))
def test_golden_letters(case: dict[str, Any]) -> None:
    official = None if case["official"] in ("none", "EXC:IndexError") else case["official"]
    assert letter(parse_letter_official(case["text"])) == official
    assert letter(parse_letter(case["text"], case.get("candidates", SCORER["candidates"]))) == case["strict"]


@pytest.mark.parametrize("rule", ["official", "strict"])
def test_golden_accuracy_per_task(rule: str) -> None:
    tasks, true, answers = zip(*SCORER["evaluation"]["rows"], strict=True)
    candidates = SCORER["candidates"]
    predicted = [parse_letter_official(a) if rule == "official" else parse_letter(a, candidates) for a in answers]
    mean, per_task = choice_accuracy(predicted, true, tasks)
    expected = SCORER["evaluation"][rule]
    assert mean == pytest.approx(expected["macro_average"], abs=1e-12)
    assert set(per_task) == set(expected["per_task"])
    for task, row in expected["per_task"].items():
        assert per_task[task].correct == row["yes_count"]
        assert per_task[task].total - per_task[task].correct == row["no_count"]
        assert per_task[task].accuracy == pytest.approx(row["accuracy"], abs=1e-12)


@pytest.mark.parametrize("name", LOGS)
def test_published_logs(name: str) -> None:
    expected = LOGS[name]
    with gzip.open(GOLDENS / expected["file"], "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == expected["rows"]
    true = [row[0] for row in rows]
    official = [parse_letter_official(row[1]) for row in rows]
    strict = [parse_letter(row[1], row[2]) for row in rows]
    mean, per_task = choice_accuracy(official, true)
    assert per_task[""].correct == expected["official_correct"]
    assert round(100 * mean, 2) == expected["official_accuracy_percent"]
    assert Counter(letter(index) or "none" for index in official) == expected["official_letter_counts"]
    strict_row = choice_accuracy(strict, true)[1][""]
    assert (strict_row.correct, strict_row.unparsed) == (expected["strict_correct"], expected["strict_unparsed"])
    differing = [index for index, pair in enumerate(zip(official, strict, strict=True)) if pair[0] != pair[1]]
    assert differing == expected["rows_where_official_and_strict_differ"]


def check_official(scores: OfficialVerdictScores | None, expected: dict[str, Any]) -> None:
    if "exception" in expected:
        assert scores is None
        return
    assert scores is not None
    assert scores.mean_score == pytest.approx(expected["average_score"], abs=1e-9)
    assert scores.num_scored == expected["records_kept"]
    if "accuracy" in expected:
        assert (scores.yes, scores.no) == (expected["yes_count"], expected["no_count"])
        assert scores.accuracy == pytest.approx(expected["accuracy"], abs=1e-9)


@pytest.mark.parametrize("case", JUDGE["single_replies"], ids=lambda case: repr(case["reply"]))
def test_golden_replies_of_a_judge(case: dict[str, Any]) -> None:
    check_official(score_verdicts_official([case["reply"]]), case["official"])
    strict, scores = case["strict"], score_verdicts([case["reply"]])
    assert (scores.failed, scores.unparsed) == (strict["status"] == "api-error", strict["status"] == "unparsed")
    if strict["status"] == "ok":
        verdict = parse_verdict(case["reply"])
        assert verdict is not None
        assert (verdict.yes, verdict.score) == (strict["yes"], strict["score"])


@pytest.mark.parametrize("case", JUDGE["sets"], ids=lambda case: case["name"])
def test_golden_sets_of_replies(case: dict[str, Any]) -> None:
    check_official(score_verdicts_official(case["replies"]), case["official"])
    scores, strict = score_verdicts(case["replies"]), case["strict"]
    assert scores.total == strict["n_total"]
    assert scores.total - scores.unparsed - scores.failed == strict["n_ok"]
    assert scores.accuracy == pytest.approx(strict["accuracy_over_all"], abs=1e-9)
    assert scores.parsed_accuracy == pytest.approx(strict["accuracy_over_ok"], abs=1e-9)
    assert scores.mean_score == pytest.approx(strict["mean_score_over_ok"], abs=1e-9)
    assert scores.mean_truncated_score == pytest.approx(strict["mean_truncated_score_over_ok"], abs=1e-9)


def test_golden_scores_without_a_verdict() -> None:
    case = JUDGE["score_only"]
    check_official(score_verdicts_official(case["replies"], score_only=True), case["official"])
    for single in case["single"]:
        check_official(score_verdicts_official([single["reply"]], score_only=True), single["official"])
    scores = score_verdicts(case["replies"], score_only=True)
    assert (scores.total, scores.unparsed, scores.failed, scores.accuracy) == (9, 2, 1, None)
    assert scores.mean_score == pytest.approx((4.8 + 3 + 2 + 2.5 + 5 + 0) / 6)


@pytest.mark.parametrize("row", JUDGE["vcgbench_average"]["rows"])
def test_golden_mean_of_vcgbench(row: dict[str, Any]) -> None:
    scores = dict(zip(VCGBENCH_ASPECTS, row["parts"], strict=True))
    assert vcgbench_mean(scores) == pytest.approx(row["mean"], abs=1e-9)
    with raises_naming(UserError, "TU"):
        vcgbench_mean({name: score for name, score in scores.items() if name != "TU"})
    with raises_naming(UserError, "CO2", "'CO'"):
        vcgbench_mean({**scores, "CO2": 1.0})


@given(st.text(), st.integers(1, 26))
def test_any_text_is_read_or_unparsed(text: str, count: int) -> None:
    index = parse_letter(text, count)
    assert index is None or 0 <= index < count
    official = parse_letter_official(text)
    assert official is None or 0 <= official < 5
    assert score_verdicts([text]).total == 1
    score_verdicts_official([text])


@given(st.integers(0, 25), st.sampled_from(["{}", "({})", "{}.", "{}) of them", "**{}**", "The answer is {}."]))
def test_every_letter_is_read(index: int, form: str) -> None:
    text = form.format("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index])
    assert parse_letter(text, 26) == index
    assert parse_letter(text, index or 1) == (None if index else 0)


@pytest.mark.parametrize("reply", ["(" * 5000, "-" * 100_000 + "1", "{'pred': 'yes', 'score': 1" + "0" * 5000 + "}"])
def test_a_reply_that_is_nested_or_long_is_unparsed(reply: str) -> None:
    assert score_verdicts([reply]).unparsed == 1
    assert score_verdicts_official([reply]) is None


def test_evidence_is_one_frame_of_every_group() -> None:
    evidence = [[{3}], [{0, 1}, {7}], [[2], [4]]]
    assert evidence_recall(evidence, [[3, 3], [1, 7], [4]]) == pytest.approx(2 / 3)
    assert evidence_recall(evidence, [range(9)] * 3) == 1
    assert evidence_recall(evidence, [[]] * 3) == 0


def test_hostile_numbers_are_named() -> None:
    with raises_naming(UserError, "candidates", 27):
        parse_letter("A", 27)
    with raises_naming(UserError, "candidates", 0):
        parse_letter("A", [])
    with raises_naming(UserError, "2 answers", "1 question"):
        choice_accuracy([0, 1], [0])
    with raises_naming(UserError, "0 questions"):
        choice_accuracy([], [])
    with raises_naming(UserError, "judge"):
        score_verdicts([])
    assert score_verdicts_official([]) is None
    with raises_naming(UserError, "question 1"):
        evidence_recall([[{1}], [set()]], [[1], [1]])
    with raises_naming(UserError, "question 0"):
        evidence_recall([[]], [[1]])
    with raises_naming(UserError, 1, 2):
        evidence_recall([[{1}]], [[1], [2]])
