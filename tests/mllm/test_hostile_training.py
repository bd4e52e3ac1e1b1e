"""Recipes and run folders of a hostile or unlucky user: refused in one sentence, or resumed without a loss."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core.errors import UserError
from foveate.core.model_folder import read_tensors
from foveate.mllm.train import STAGE, Trained, train_mllm
from foveate.records.collection import Collection
from naming import raises_naming
from tiny_mllm import make_recipe

STAGES = [stage.model_dump() for stage in make_recipe().stages]
MODEL = make_recipe().model.model_dump()


def train(collection: Path, run: Path, **changes: Any) -> Trained:
    with Collection.open(collection) as opened:
        return train_mllm(make_recipe(**changes), opened, run)


@pytest.fixture(scope="module")
def finished(asked_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(asked_collection, tmp_path_factory.mktemp("finished") / "run")


def test_a_run_goes_on_with_other_workers(asked_collection: Path, finished: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(finished.run.path, tmp_path / "run")
    stages = [{**stage, "training": {**stage["training"], "workers": 1, "log_every": 7}} for stage in STAGES]
    assert train(asked_collection, run, stages=stages).result.status == "finished"
    stages[1]["training"]["learning_rate"] = 0.1
    with raises_naming(UserError, "recipe.yaml"):
        train(asked_collection, run, stages=stages)


@pytest.mark.parametrize("number", [0, 1])
def test_a_stage_that_died_before_its_result_is_finished_with_its_curve(
    asked_collection: Path, finished: Trained, tmp_path: Path, number: int
) -> None:
    run = shutil.copytree(finished.run.path, tmp_path / "run")
    shutil.rmtree(run / "model")
    next(run.glob(f"stage-{number}-*/{STAGE}")).unlink()
    again = train(asked_collection, run)
    assert again.model_folder is not None
    assert again.result.stages[number].last == finished.result.stages[number].last
    assert finished.model_folder is not None
    expected, weights = (read_tensors(run.model_folder / "model.safetensors") for run in (finished, again))  # type: ignore[operator]
    assert expected.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())


def test_conversations_with_more_images_than_the_model_takes_are_refused(
    asked_collection: Path, tmp_path: Path
) -> None:
    model = {**MODEL, "max_images": 1}
    with raises_naming(UserError, "max_images", "same/", "(got 2)"):
        train(asked_collection, tmp_path / "run", model=model)
    assert not (tmp_path / "run").exists()
    train(asked_collection, tmp_path / "run", model=model, stages=[{**STAGES[1], "groups": ["general"]}])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stages": [{**STAGES[0], "name": "../../elsewhere"}]}, "../../elsewhere"),
        ({"stages": [{**STAGES[1], "groups": ["refer-grond"]}]}, "refer-ground"),
        ({"model": {**MODEL, "regions": "text"}}, "box_head"),
    ],
)
def test_recipes_without_sense_are_refused(changes: dict[str, Any], named: str) -> None:
    with raises_naming(UserError, named):
        make_recipe(**changes)
