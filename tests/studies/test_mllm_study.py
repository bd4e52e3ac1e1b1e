"""The study `mllm`: variants that differ in one thing, equal time, what guessing reaches, and a small run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import tiny_mllm
from foveate.core.files import read_json
from foveate.mllm.evaluate import load_suite
from foveate.mllm.results import StageResult
from foveate.mllm.suite import SuiteQuestion
from foveate.records.boxes import PixelBox
from foveate.report import render
from foveate.studies import mllm
from foveate.studies.mllm_measures import KINDS, UNSEEN, guess_scores, measures_of, step_seconds, suite_scores
from foveate.studies.published import write_published
from foveate.studies.runner import run_study
from foveate.studies.study import judge


def make_question(number: int, kind: str, answer: str, *, part: str = "", **fields: object) -> SuiteQuestion:
    slices = (kind, f"{kind}, {part}") if part else (kind,)
    return SuiteQuestion(str(number), ("image",), "?", (answer,), slices=slices, **fields)  # type: ignore[arg-type]


QUESTIONS = [
    make_question(0, "name", "cat"),
    make_question(1, "name", "cat"),
    make_question(2, "name", "dog"),
    make_question(3, "name", "emu", part="unseen names"),
    make_question(4, "is there", "yes", chance=0.5),
    make_question(5, "where", "", boxes=(PixelBox(0, 0, 10, 10),)),
    make_question(6, "where", "", boxes=(PixelBox(0, 0, 10, 12),)),
    make_question(7, "where", "", boxes=(PixelBox(50, 50, 60, 60),)),
    make_question(8, "count", "two", part="unseen names"),
]


def test_claims_name_rows_and_measures_and_begin_with_what_must_hold() -> None:
    rows, measures = {row.key for row in mllm.ROWS}, {measure.key for measure in mllm.MEASURES}
    for claim in mllm.DESIGN.claims:
        assert {claim.better, claim.worse} <= rows, claim.text
        assert claim.measure in measures, claim.text
    assert {row.trained_as for row in mllm.ROWS} == set(mllm.VARIANTS)
    assert {*KINDS, "two_answers", *(f"unseen_{kind}" for kind in UNSEEN)} <= measures
    asserted = [claim for claim in mllm.DESIGN.claims if claim.asserted]
    assert {claim.measure for claim in asserted if claim.better == "guess"} == {"name", "where", "two_answers"}
    assert mllm.FULL.seeds >= 5
    assert mllm.QUICK.seeds == 2


def test_variants_differ_from_the_recipe_in_what_they_say() -> None:
    steps = {"alignment": 100, "instruction": 200}
    recipes = {
        variant: mllm.build_recipe(variant, {name: steps[name] for name in mllm.stages_of(variant)}, seed=3)
        for variant in mllm.VARIANTS
    }
    held = recipes["held"]
    assert [stage.training.steps for stage in held.stages] == [100, 200]
    assert {stage.training.seed for stage in held.stages} == {3}
    assert held.stages[1].alignment_weight == 0.3
    assert recipes["not-held"].stages[1] == held.stages[1].model_copy(update={"alignment_weight": 0.0})
    assert recipes["not-held"].model == recipes["no-alignment"].model == held.model
    assert [stage.name for stage in recipes["no-alignment"].stages] == ["instruction"]
    assert recipes["no-maps"].model == held.model.model_copy(update={"phrase_maps": False})
    assert recipes["digits"].model == held.model.model_copy(update={"regions": "text", "box_head": False})
    connectors = [recipes[variant].model.connector for variant in ("held", "cabstractor")]
    assert connectors[0]["side"] ** 2 == connectors[1]["num_tokens"]
    assert recipes["cabstractor"].stages == recipes["no-maps"].stages == held.stages


def test_steps_fill_the_same_time_in_all_variants() -> None:
    scale = replace(mllm.QUICK, processor_seconds=100, alignment_share=0.25)
    assert mllm.choose_steps({"alignment": 0.1, "instruction": 0.5}, scale) == {"alignment": 250, "instruction": 150}
    assert mllm.choose_steps({"instruction": 0.5}, scale) == {"instruction": 200}

    def stage(name: str, steps: int, seconds: float) -> StageResult:
        return StageResult(name=name, status="finished", steps=steps, seconds=0.0, processor_seconds=seconds, samples=1)

    timed = [stage("alignment-short", 2, 1.4), stage("alignment-long", 12, 3.4), stage("other-long", 12, 9.0)]
    assert step_seconds(timed, name="alignment") == pytest.approx(0.2)


def test_guessing_is_the_best_single_answer() -> None:
    scores = guess_scores(load_suite("scenes"), QUESTIONS)
    assert scores["guess/name"] == pytest.approx(2 / 3)
    assert scores["guess/unseen_name"] == 1.0
    assert scores["guess/is_there"] == scores["guess/two_answers"] == 0.5
    assert scores["guess/where"] == pytest.approx(2 / 3)
    assert "guess/count" not in scores, "of unseen names, only naming and finding are reported"


def test_scores_are_by_kind_and_control() -> None:
    rows = [{"condition": "image", "id": str(number), "score": float(number == 0)} for number in range(9)]
    rows += [
        {"condition": "another image", "id": "4", "score": 1.0},
        {"condition": "no image", "id": "4", "error": "x"},
    ]
    scores = suite_scores(QUESTIONS, rows)
    assert scores["name"] == pytest.approx(1 / 3)
    assert scores["unseen_name"] == scores["where"] == scores["is_there"] == scores["two_answers"] == 0.0
    assert scores["another_image/is_there"] == scores["another_image/two_answers"] == 1.0
    assert not [measure for measure in scores if measure.startswith("no_image")]
    assert measures_of(QUESTIONS[8]) == []


@pytest.mark.parametrize(("shift", "expected"), [(0.0, "shown"), (0.2, "opposite")])
def test_the_control_of_another_image_can_fail(shift: float, expected: str) -> None:
    claim = next(claim for claim in mllm.CLAIMS if claim.better == "guess" and claim.measure == "name")
    values = {
        ("scenes", "guess"): {seed: {"name": 0.01} for seed in range(5)},
        ("scenes", "held-another-image"): {seed: {"name": 0.01 + shift + 0.001 * seed} for seed in range(5)},
    }
    judged = judge(claim, values)
    assert judged is not None
    assert judged["verdict"] == expected


def write_tiny_recipe(path: Path) -> Path:
    """The shipped recipe's stages on the tiny model."""
    content = tiny_mllm.make_recipe().model_dump(mode="json")
    content["model"]["language"]["max_position_embeddings"] = 512
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_tiny_study_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mllm, "RECIPE", str(write_tiny_recipe(tmp_path / "tiny.yaml")))
    # Steps by the clock would make the length of this test depend on the machine.
    monkeypatch.setattr(mllm, "choose_steps", lambda seconds, scale: dict.fromkeys(seconds, 3))
    scale = mllm.Scale(
        train_scenes=12, test_scenes=8, processor_seconds=1, alignment_share=0.5, timed_steps=1, questions=12, seeds=1
    )
    command = ["foveate", "study", "mllm"]
    result = run_study("mllm", tmp_path / "study", scale=scale, command=command)
    entries = {entry["row"]: entry["values"] for entry in result["table"]}
    assert set(entries) == {row.key for row in mllm.ROWS}
    assert {"name", "nearest", "processor_seconds"} <= set(entries["held"])
    assert "nearest" in entries["held-another-image"]
    assert result["trainings"] == len(mllm.VARIANTS)
    lines = result["further_tables"][0]["lines"]
    assert ["alignment held", "3", "3"] in lines
    assert ["no alignment", "0", "3"] in lines
    assert set(read_json(tmp_path / "study" / "steps.json")) == set(mllm.VARIANTS)
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").glob("*.json")}
    again = run_study("mllm", tmp_path / "study", scale=scale, command=command)
    assert again["table"] == result["table"]
    assert cells == {path: path.stat().st_mtime_ns for path in cells}
    assert "Steps at equal processor time" in render(tmp_path / "study").read_text(encoding="utf-8")
    write_published(result, tmp_path / "data")
