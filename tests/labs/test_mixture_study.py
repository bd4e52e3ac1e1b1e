"""The study `mixture`: variants that differ in shares alone, claims that can fail, and a small run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import tiny_mllm
from foveate.mllm.recipe import MllmRecipe
from foveate_labs.studies import mixture, mllm_trainings
from foveate_labs.studies.mllm_trainings import TrainingScale, build_recipe
from foveate_labs.studies.runner import run_study
from foveate_labs.studies.study import judge

TINY = TrainingScale(train=24, test=6, processor_seconds=1, timed_steps=1, questions=9, tower_steps=0, seeds=1)


def make_recipe(variant: str) -> MllmRecipe:
    return build_recipe(mixture.VARIANTS[variant], {"alignment": 100, "instruction": 100}, seed=3)


def shares_of(variant: str) -> dict[str, float]:
    weights = make_recipe(variant).stages[1].mixture
    assert weights is not None
    return weights.shares()


def test_claims_name_rows_and_measures() -> None:
    rows, measures = {row.key for row in mixture.ROWS}, {measure.key for measure in mixture.MEASURES}
    for claim in mixture.CLAIMS:
        assert {claim.better, claim.worse} <= rows, claim.text
        assert claim.measure in measures, claim.text
    by_text = {claim.text for claim in mixture.CLAIMS}
    for paper in mixture.PAPER_CLAIMS:
        assert paper.untestable or {paper.claim, paper.control} <= by_text, paper.text


def test_variants_differ_in_the_shares_of_groups_alone() -> None:
    reference = make_recipe(mixture.REFERENCE)
    assert reference.stages[1].groups == ()
    for variant in mixture.VARIANTS:
        recipe = make_recipe(variant)
        weights = recipe.stages[1].mixture
        assert (recipe.model, recipe.stages[0]) == (reference.model, reference.stages[0])
        assert recipe.stages[1] == reference.stages[1].model_copy(update={"mixture": weights})


def test_shares_are_those_that_titles_say() -> None:
    assert shares_of("reference") == pytest.approx(
        {"general": 0.3, "refer-ground": 0.6, "text-rich": 0, "multi-image": 0.1, "text": 0}
    )
    assert shares_of("multi-0")["multi-image"] == 0
    assert shares_of("multi-60")["multi-image"] == pytest.approx(0.6)
    for variant, alpha in (("refer-0.5", 0.5), ("refer-8", 8.0)):
        shares = shares_of(variant)
        assert shares["refer-ground"] / shares["general"] == pytest.approx(alpha)
        assert shares["multi-image"] == pytest.approx(0.1)
    assert shares_of("text-rich-3.3")["text-rich"] == pytest.approx(0.9 * 3.3 / 6.3)


def test_what_must_hold_fails_for_models_that_see_nothing() -> None:
    values = {
        ("scenes", row.key): {seed: {m.key: 0.3 + 0.001 * seed for m in mixture.MEASURES} for seed in range(5)}
        for row in mixture.ROWS
    }
    effects = [claim for claim in mixture.CLAIMS if claim.asserted and claim.margin > 0]
    assert len(effects) == 2
    for claim in effects:
        judged = judge(claim, values)
        assert judged is not None
        assert judged["verdict"] == "not shown", claim.text


def test_a_tiny_study_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_mllm.make_recipe().model_dump(mode="json")
    recipe["model"]["language"]["max_position_embeddings"] = 1024
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.setattr(mllm_trainings, "RECIPE", str(tmp_path / "tiny.yaml"))
    # Steps by the clock would make the length of this test depend on the machine.
    monkeypatch.setattr(mllm_trainings, "choose_steps", lambda variant, seconds, total: dict.fromkeys(seconds, 2))
    command = ["foveate", "study", "mixture"]
    variants = ("multi-60",)
    result = run_study("mixture", tmp_path / "study", scale=TINY, variants=variants, command=command)
    entries = {entry["row"]: entry["values"] for entry in result["table"]}
    assert set(entries) == {row.key for row in mixture.ROWS if row.trained_as in variants}
    assert {"name", "where", "nearest", "processor_seconds"} <= set(entries["multi-60"])
    assert ["w_multi .6", "2", "2"] in result["further_tables"][0]["lines"]
