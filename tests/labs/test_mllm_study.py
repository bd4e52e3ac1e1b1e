"""The study `mllm`: variants that differ in one thing, equal time, what guessing reaches, and a small run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny_mllm
from foveate.core.files import read_json
from foveate.core.model_folder import read_tensors
from foveate.mllm.evaluate import load_suite
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.results import StageResult
from foveate.mllm.suite import SuiteQuestion
from foveate.records.boxes import PixelBox
from foveate.report import render
from foveate.vision.localizer.folder import load_model
from foveate.vision.tiling import ImageSize, plan_tiles
from foveate_labs.studies import mllm, mllm_trainings
from foveate_labs.studies.mllm_measures import guess_scores, step_seconds, suite_scores
from foveate_labs.studies.mllm_trainings import build_recipe, choose_steps
from foveate_labs.studies.published import write_published
from foveate_labs.studies.runner import run_study
from foveate_labs.studies.study import judge


def make_question(id: str, answer: str, **fields: object) -> SuiteQuestion:
    return SuiteQuestion(id, ("image",), "?", (answer,), **fields)  # type: ignore[arg-type]


QUESTIONS = [
    make_question("name/open/all/0", "cat"),
    make_question("name/open/all/1", "cat"),
    make_question("name/open/all/2", "dog"),
    make_question("shown/open/small/3", "emu"),
    make_question("is_there/two-answers/all/4", "yes", chance=0.5),
    make_question("where/open/all/5", "", boxes=(PixelBox(0, 0, 10, 10),)),
    make_question("where/open/all/6", "", boxes=(PixelBox(0, 0, 10, 12),)),
    make_question("where/open/all/7", "", boxes=(PixelBox(50, 50, 60, 60),)),
]


def test_claims_name_rows_and_measures_and_begin_with_what_must_hold() -> None:
    rows, measures = {row.key for row in mllm.ROWS}, {measure.key for measure in mllm.MEASURES}
    for claim in mllm.DESIGN.claims:
        assert {claim.better, claim.worse} <= rows, claim.text
        assert {claim.measure, claim.worse_measure or claim.measure} <= measures, claim.text
    assert {row.trained_as for row in mllm.ROWS} == set(mllm.VARIANTS)
    asserted = [claim for claim in mllm.DESIGN.claims if claim.asserted]
    assert {claim.measure for claim in asserted if claim.better == "guess-scenes"} == {"name", "where", "two_answers"}
    by_text = {claim.text for claim in mllm.CLAIMS}
    for paper in mllm.PAPER_CLAIMS:
        assert paper.untestable or {paper.claim, *filter(None, [paper.control])} <= by_text
    assert mllm.FULL.seeds >= 5
    assert mllm.QUICK.seeds == 2


def test_both_sides_of_a_claim_are_asked_the_same_questions() -> None:
    condition_of = {row.key: mllm.VARIANTS[row.trained_as].condition for row in mllm.ROWS}
    for claim in mllm.CLAIMS:
        assert condition_of[claim.better] == condition_of[claim.worse] == claim.condition, claim.text
    cells = mllm.MllmStudy.cells(mllm.QUICK, seed=0, datasets=())
    assert len(cells) == 2 * len(mllm.VARIANTS)
    assert all(cell.condition == mllm.VARIANTS[cell.variant].condition for cell in cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells), "whole seeds first"


def make_recipe(variant: str) -> MllmRecipe:
    return build_recipe(mllm.VARIANTS[variant], dict.fromkeys(mllm.VARIANTS[variant].stages, 100), seed=3)


def test_variants_differ_from_the_recipe_in_what_they_say() -> None:
    recipes = {variant: make_recipe(variant) for variant in mllm.VARIANTS}
    held = recipes["held"]
    assert [stage.training.steps for stage in held.stages] == [100, 100]
    assert {stage.training.seed for stage in held.stages} == {3}
    assert held.stages[1].alignment_weight == 0.3
    assert recipes["not-held"].stages[1] == held.stages[1].model_copy(update={"alignment_weight": 0.0})
    assert recipes["not-held"].model == recipes["no-alignment"].model == held.model
    assert [stage.name for stage in recipes["no-alignment"].stages] == ["instruction"]
    assert recipes["no-maps"].model == held.model.model_copy(update={"phrase_maps": False})
    assert recipes["digits"].model == held.model.model_copy(update={"regions": "text", "box_head": False})
    connectors = [recipes[variant].model.connector for variant in ("held", "cabstractor")]
    assert connectors[0]["side"] ** 2 == connectors[1]["num_tokens"]
    assert recipes["cabstractor"].stages == recipes["no-maps"].stages == recipes["sparse"].stages == held.stages


def test_variants_of_data_differ_in_their_groups_alone() -> None:
    everything = make_recipe("all-groups")
    for group in everything.stages[1].groups:
        without = make_recipe(f"no-{group}")
        left = tuple(other for other in everything.stages[1].groups if other != group)
        assert without.stages[1] == everything.stages[1].model_copy(update={"groups": left})
        assert (without.model, without.stages[0]) == (everything.model, everything.stages[0])
    assert make_recipe("text-alt").stages[1].groups == ("text",)
    assert make_recipe("reading").stages[1].groups == ("text-rich",)
    assert make_recipe("text-alt").stages[2] == make_recipe("held").stages[1]


def test_experts_have_the_active_parameters_of_the_dense_layer() -> None:
    experts = make_recipe("sparse").model.experts
    assert experts is not None
    assert experts.width_divisor == 2, "two experts for each token"
    assert make_recipe("sparse").model.model_copy(update={"experts": None}) == make_recipe("held").model


def test_tiles_and_one_view_differ_in_their_tiles_alone() -> None:
    tiles, view, canvas = (make_recipe(variant).model for variant in ("tiles", "one-view", "canvas"))
    assert tiles.assembly is not None
    tiling = tiles.assembly.tiling.model_copy(update={"min_tiles": 1, "max_tiles": 1})
    assert view == tiles.model_copy(update={"assembly": tiles.assembly.model_copy(update={"tiling": tiling})})
    assert canvas == tiles.model_copy(update={"frame": "canvas"})
    size = ImageSize(128, 256)
    assert len(plan_tiles(size, tiles.assembly.tiling).views) == 5
    assert len(plan_tiles(size, tiling).views) == 1


def test_stages_share_the_time_of_every_variant() -> None:
    for variant in mllm.VARIANTS.values():
        assert sum(variant.stages.values()) == pytest.approx(1.0), variant.title
    steps = choose_steps(mllm.VARIANTS["held"], {"alignment": 0.1, "instruction": 0.5}, 100)
    assert steps == {"alignment": 300, "instruction": 140}
    assert choose_steps(mllm.VARIANTS["no-alignment"], {"instruction": 0.5}, 100) == {"instruction": 200}

    def stage(name: str, steps: int, seconds: float) -> StageResult:
        return StageResult(name=name, status="finished", steps=steps, seconds=0.0, processor_seconds=seconds, samples=1)

    timed = [stage("alignment-short", 2, 1.4), stage("alignment-long", 12, 3.4), stage("other-long", 12, 9.0)]
    assert step_seconds(timed, name="alignment") == pytest.approx(0.2)


def test_guessing_is_the_best_single_answer() -> None:
    scores = guess_scores(load_suite("scenes"), QUESTIONS)
    assert scores["guess/name"] == pytest.approx(2 / 3)
    assert scores["guess/shown"] == scores["guess/shown_small"] == 1.0
    assert scores["guess/is_there"] == scores["guess/two_answers"] == 0.5
    assert scores["guess/where"] == pytest.approx(2 / 3)


def test_scores_are_by_kind_and_control() -> None:
    rows = [
        {"condition": "image", "id": question.id, "score": float(number == 0), "boxes": [[0, 0, 10, 10]]}
        for number, question in enumerate(QUESTIONS)
    ]
    id = QUESTIONS[4].id
    rows += [{"condition": "another image", "id": id, "score": 1.0}, {"condition": "no image", "id": id, "error": "x"}]
    scores = suite_scores(QUESTIONS, rows)
    assert scores["name"] == pytest.approx(1 / 3)
    assert scores["shown"] == scores["shown_small"] == scores["where"] == scores["two_answers"] == 0.0
    assert scores["where_iou"] == pytest.approx((1 + 100 / 120 + 0) / 3)
    assert scores["another_image/is_there"] == scores["another_image/two_answers"] == 1.0
    assert not [measure for measure in scores if measure.startswith("no_image")]


@pytest.mark.parametrize(("shift", "expected"), [(0.0, "shown"), (0.2, "opposite")])
def test_the_control_of_another_image_can_fail(shift: float, expected: str) -> None:
    claim = next(claim for claim in mllm.CLAIMS if claim.better == "guess-scenes" and claim.measure == "name")
    values = {
        ("scenes", "guess-scenes"): {seed: {"name": 0.01} for seed in range(5)},
        ("scenes", "held-another-image"): {seed: {"name": 0.01 + shift + 0.001 * seed} for seed in range(5)},
    }
    judged = judge(claim, values)
    assert judged is not None
    assert judged["verdict"] == expected


def test_what_must_hold_fails_for_a_model_that_sees_nothing() -> None:
    """All rows answer alike: no claim that compares with a control may be shown."""
    values = {
        ("scenes", row.key): {seed: {m.key: 0.3 + 0.001 * seed for m in mllm.MEASURES} for seed in range(5)}
        for row in mllm.ROWS
    }
    effects = [claim for claim in mllm.CLAIMS if claim.asserted and claim.better == "held"]
    assert len(effects) >= 3
    for claim in effects:
        judged = judge(claim, values)
        assert judged is not None
        assert judged["verdict"] == "not shown", claim.text


def write_tiny_recipe(path: Path) -> Path:
    """The shipped recipe's stages on the tiny model."""
    content = tiny_mllm.make_recipe().model_dump(mode="json")
    content["model"]["language"]["max_position_embeddings"] = 1024
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


TINY = mllm_trainings.TrainingScale(
    train=12, test=6, processor_seconds=1, timed_steps=1, questions=9, tower_steps=2, seeds=1
)


def run_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *variants: str) -> dict[str, Any]:
    monkeypatch.setattr(mllm_trainings, "RECIPE", str(write_tiny_recipe(tmp_path / "tiny.yaml")))
    # Steps by the clock would make the length of this test depend on the machine.
    monkeypatch.setattr(mllm_trainings, "choose_steps", lambda variant, seconds, total: dict.fromkeys(seconds, 2))
    command = ["foveate", "study", "mllm"]
    return run_study("mllm", tmp_path / "study", scale=TINY, variants=variants, command=command)


def check_rows(result: dict[str, Any], variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    entries = {entry["row"]: entry["values"] for entry in result["table"]}
    assert set(entries) == {row.key for row in mllm.ROWS if row.trained_as in variants}
    assert result["trainings"] == len(variants)
    return entries


@pytest.mark.slow
def test_a_tiny_study_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = ("held", "canvas")
    result = run_tiny(tmp_path, monkeypatch, *variants)
    entries = check_rows(result, variants)
    assert {"nearest", "processor_seconds"} <= set(entries["held"])
    assert "nearest" in entries["held-another-image"]
    assert "place_iou" in entries["canvas-fewer"]
    assert ["alignment held", "2", "0", "0", "2"] in result["further_tables"][0]["lines"]
    assert set(read_json(tmp_path / "study" / "steps.json")) == set(variants)
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").glob("*.json")}
    again = run_tiny(tmp_path, monkeypatch, *variants)
    assert again["table"] == result["table"]
    assert cells == {path: path.stat().st_mtime_ns for path in cells}
    assert "Steps at equal processor time" in render(tmp_path / "study").read_text(encoding="utf-8")
    write_published(result, tmp_path / "data")


@pytest.mark.slow
def test_a_frozen_tower_keeps_the_head_that_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged: list[dict[str, bool]] = []

    def watch(study: mllm.MllmStudy, variant: str, *arguments: Any, **options: Any) -> Any:
        trained = train(study, variant, *arguments, **options)
        head = load_model(study.train_tower("clip", study.folder / "scenes"), device="cpu").image_encoder.state_dict()
        weights = read_tensors(trained.model_folder / "model.safetensors")
        names = [name for name in head if f"tower.{name}" in weights]
        unchanged.append(
            {
                name: torch.equal(weights[f"tower.{name}"], head[name].to(weights[f"tower.{name}"].dtype))
                for name in names
            }
        )
        return trained

    train = mllm.MllmStudy._train
    monkeypatch.setattr(mllm.MllmStudy, "_train", watch)
    run_tiny(tmp_path, monkeypatch, "tower-clip")
    assert len(unchanged) == 2, "timed, then trained"
    assert all({"fine_in.weight", "coarse_in.weight"} <= set(names) for names in unchanged)
    assert all(all(names.values()) for names in unchanged), unchanged


@pytest.mark.slow
def test_every_variant_can_be_trained_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Timed in the test above; here it would be most of the work.
    monkeypatch.setattr(
        mllm.MllmStudy, "_time_steps", lambda study, variant: dict.fromkeys(mllm.VARIANTS[variant].stages, 1.0)
    )
    check_rows(run_tiny(tmp_path, monkeypatch), list(mllm.VARIANTS))
